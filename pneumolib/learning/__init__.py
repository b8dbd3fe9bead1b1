"""The networks and how they are fitted. Keras only; `devices` and `explain` alone know the backend."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "devices": ["start"],
        "transfer": ["split_at_head", "summary_table", "unfreeze"],
        "networks": ["build_model", "network_blocks"],
        "features": ["fit_head", "frozen_features"],
        "predicting": ["choose_images", "milliseconds_per_image", "predict", "predict_corrupted", "predict_views"],
        "explain": ["grad_cam", "occlusion_check", "randomisation_check"],
        "fitting": [
            "class_weights",
            "compile_model",
            "fit",
            "initial_logit",
            "load_model",
            "repeat_seeds",
            "save_model",
            "train_and_predict",
            "training_facts",
        ],
    },
)
