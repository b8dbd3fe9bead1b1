"""One trained network with all that belongs to it, read from `model.keras` and `result.json` and nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumolib.evaluation.calibration import Calibration
from pneumolib.params import ImageParams, in_root
from pneumolib.reporting.results import MODEL_FILE, RESULT_FILE, Result, ResultError, read_result


class ModelError(ValueError):
    """A run whose model cannot be used; the message says what was found and what to do."""


@dataclass(frozen=True)
class TrainedModel:
    """A network and what was decided with it.

    Attributes:
        folder: where its two files lie.
        result: all that is known of its training.
        network: pixels uint8 (n, size_px, size_px, channels) to logits, float32 (n, 1).
        image: what `data.load_image` makes of a file for it.
        threshold: a probability at or above it is called pneumonia; frozen on validation.
        calibration: from logits to calibrated probabilities; frozen on validation.
    """

    folder: Path
    result: Result
    network: Any  # keras.Model, which this room does not import
    image: ImageParams
    threshold: float
    calibration: Calibration

    @property
    def name(self) -> str:
        """`study/run`."""
        return f"{self.result.study}/{self.result.run}"


def find_run(run: str | Path) -> Path:
    """The folder of a run that is named by its folder or as `study/run`.

    Raises:
        ModelError: neither holds a result and a model.
    """
    places = [Path(run), in_root(f"runs/{run}")]
    for place in places:
        if (place / RESULT_FILE).is_file() and (place / MODEL_FILE).is_file():
            return place.resolve()
    found = sorted(f.parent for f in in_root("runs").glob(f"*/*/{MODEL_FILE}") if (f.parent / RESULT_FILE).is_file())
    names = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in found) or "none"
    raise ModelError(
        f"{run}: no run with {RESULT_FILE} and {MODEL_FILE}; looked in {places[0]} and {places[1]}. Name a run's folder or "
        f"<study>/<run>. Runs found here: {names}"
    )


def load_trained(run: str | Path, force: bool = False) -> TrainedModel:
    """The trained model of a run.

    Args:
        run: its folder, or `study/run`.
        force: take a model file that is not the one the run recorded.
    Raises:
        ModelError: no such run, one without a threshold, or a model file that must not be loaded.
    """
    folder = find_run(run)
    try:
        result = read_result(folder)
    except ResultError as fault:
        raise ModelError(str(fault)) from None
    if result.threshold is None or result.calibration is None:
        raise ModelError(
            f"{folder}: {RESULT_FILE} holds no threshold and calibration; name a run that trains a network"
        )
    # Imported here: it brings TensorFlow.
    from pneumolib.learning.training import load_model

    calibration = result.calibration.model_dump()
    calibration |= {name: tuple(calibration[name]) for name in ("logits", "probabilities")}
    return TrainedModel(
        folder,
        result,
        load_model(folder / MODEL_FILE),
        ImageParams(**result.parameters["image"]),
        result.threshold.value,
        Calibration(**calibration),
    )
