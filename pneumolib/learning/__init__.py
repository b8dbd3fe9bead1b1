"""The networks and how they are fitted. Keras only; `devices` and `explain` alone know the backend."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "devices": ["start"],
        "fine_tuning": ["split_at_head", "unfreeze"],
        "models": ["build_model", "network_blocks", "summary_table"],
        "trials": ["train_and_predict", "train_other_seeds"],
        "features": ["fit_head", "frozen_features"],
        "predicting": ["choose_images", "milliseconds_per_image", "predict", "predict_corrupted", "predict_views"],
        "explain": ["grad_cam", "occlusion_check", "randomisation_check"],
        "training": [
            "class_weights",
            "compile_model",
            "fit",
            "initial_logit",
            "load_model",
            "save_model",
            "training_facts",
        ],
    },
)
