"""The networks and how they are fitted. Keras only; `devices` alone knows the backend."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "devices": ["start"],
        "models": ["build_model", "summary_table"],
        "trials": ["train_and_predict"],
        "training": ["class_weights", "fit", "initial_logit", "predict", "training_facts"],
    },
)
