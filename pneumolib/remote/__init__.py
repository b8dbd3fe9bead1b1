"""Studies on borrowed machines: one notebook that carries everything, Kaggle's client, Colab's commands."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bundle": ["Bundle", "build", "run_study", "settle"],
        "kaggle": ["colab_commands", "colab_schedule", "push", "write_metadata"],
    },
)
