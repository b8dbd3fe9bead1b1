"""A trained model at work: on files in a terminal, on a page, in other programs. `model.keras` and `result.json` are enough."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "trained": ["TrainedModel", "find_run", "load_trained", "trained_runs"],
    },
)
