"""The networks and how they are fitted. Keras only; `devices` and `explain` alone know the backend."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "devices": ["start"],
        "transfer": ["summary_table", "unfreeze"],
        "networks": ["build_model", "checked", "network_blocks", "network_source"],
        "files": ["load_model"],
        "predicting": ["choose_images", "milliseconds_per_image", "predict", "predict_corrupted", "predict_views"],
        "explain": ["grad_cam", "occlusion_check", "randomisation_check"],
        "fitting": [
            "average_seeds",
            "class_weights",
            "compile_model",
            "fit",
            "initial_logit",
            "make_optimizer",
            "predict_seeds",
            "repeat_seeds",
            "save_model",
            "steps_at_once",
            "train_and_predict",
            "trained_part",
            "training",
            "training_facts",
            "training_metrics",
        ],
    },
)
