"""Keras imported without what it and TensorFlow import only because it is installed, and without collecting on the way.

TensorFlow's converter for phones imports JAX, Keras's wrappers for scikit-learn that package with scipy.stats, its picture
gallery matplotlib, its editor of files IPython; all of them take a missing package as an answer, and nothing here uses
those parts. A collection of garbage finds next to nothing among the half a million objects that an import makes, and the
last one, when Python ends, takes a second over them. `benchmarks/prediction.py` measures what this saves.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MERELY_OFFERED = ("IPython", "jax", "matplotlib", "sklearn")


def import_keras() -> None:
    """Import Keras, so that whatever imports it later has it at once. All packages can be imported afterwards.

    Where `KERAS_BACKEND` says nothing it is TensorFlow: a file in a person's home, which Keras would ask then, must not decide
    what a network answers.
    """
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # facts about the CPU would stand between the results
        with _unseen(MERELY_OFFERED), _uncollected():
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


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for, and none ever among what is there at the end: modules stay until Python ends."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
