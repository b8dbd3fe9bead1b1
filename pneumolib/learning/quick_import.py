"""Keras imported without what it and TensorFlow import only because it is installed.

Measured on two cores with Keras 3.15 and TensorFlow 2.21: 4.1 s instead of 5.8 s. TensorFlow's converter for phones imports
JAX, Keras's wrappers for scikit-learn that package with scipy.stats, its picture gallery matplotlib; all three take a
missing package as an answer, and nothing here uses those parts.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MERELY_OFFERED = ("jax", "matplotlib", "sklearn")


def import_keras() -> None:
    """Import Keras, so that whatever imports it later has it at once. All packages can be imported afterwards."""
    if "keras" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # facts about the CPU would stand between the results
        with _unseen(MERELY_OFFERED):
            import keras  # noqa: F401


@contextmanager
def _unseen(names: tuple[str, ...]) -> Iterator[None]:
    """Packages that are not imported yet look as if they were not installed; JAX stays where it is the backend."""
    wanted = {"jax"} if os.environ.get("KERAS_BACKEND") == "jax" else set()
    hidden = [name for name in names if name not in sys.modules and name not in wanted]
    sys.modules.update(dict.fromkeys(hidden))  # None: Python's own sign for a module that must not be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
