"""One trained network with all that belongs to it, read from `model.keras` and `result.json` and nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumolib.data.familiarity import Familiarity
from pneumolib.evaluation.calibration import Calibration
from pneumolib.params import ImageParams, in_root
from pneumolib.reporting.origin import file_sha256
from pneumolib.reporting.results import (
    MODEL_FILE,
    RESULT_FILE,
    FamiliarityResult,
    Result,
    ResultError,
    read_result,
)

RESEARCH_ONLY = "Research only, not a medical device."


class ModelError(ValueError):
    """A run whose model cannot or must not be used; the message says what was found and what to do."""


@dataclass(frozen=True)
class TrainedModel:
    """A network and what was decided with it.

    Attributes:
        folder: where its two files lie.
        result: all that is known of its training.
        network: a `keras.Model`; pixels uint8 (n, size_px, size_px, channels) to logits, float32 (n, 1).
        image: what `data.load_image` makes of a file for it.
        threshold: a probability at or above it is called pneumonia; frozen on validation.
        calibration: from logits to calibrated probabilities; frozen on validation.
        familiarity: what its training images are like; None where the run did not keep it.
    """

    folder: Path
    result: Result
    network: Any
    image: ImageParams
    threshold: float
    calibration: Calibration
    familiarity: Familiarity | None

    @property
    def name(self) -> str:
        """`study/run`."""
        return f"{self.result.study}/{self.result.run}"


def trained_runs() -> list[str]:
    """Finished runs of this project that left a network, as `study/run`, by name."""
    models = sorted(in_root("runs").glob(f"*/*/{MODEL_FILE}"))
    folders = [file.parent for file in models if not file.parent.name.startswith(".")]
    return [f"{folder.parent.name}/{folder.name}" for folder in folders if (folder / RESULT_FILE).is_file()]


def find_run(run: str | Path) -> Path:
    """The folder of a run that is named by its folder or as `study/run`.

    Raises:
        ModelError: neither holds a result and a model.
    """
    places = [Path(run), in_root(f"runs/{run}")]
    for place in places:
        if (place / RESULT_FILE).is_file() and (place / MODEL_FILE).is_file():
            return place.resolve()
    raise ModelError(
        f"{run}: no run with {RESULT_FILE} and {MODEL_FILE}; looked in {places[0]} and {places[1]}. Name a run's folder or "
        f"<study>/<run>. Runs found here: {', '.join(trained_runs()) or 'none; make report trains some'}"
    )


def load_trained(run: str | Path, force: bool = False) -> TrainedModel:
    """The trained model of a run.

    Args:
        run: its folder, or `study/run`.
        force: take a model file that is not the one the run recorded. It is looked through for code all the same.
    Raises:
        ModelError: no such run, one without a threshold, a model file that is not the recorded one, or one that must not
            be loaded; see `learning.files`.
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
    if not force:
        _check_hash(folder / MODEL_FILE, result.model_sha256)
    return TrainedModel(
        folder=folder,
        result=result,
        network=_load(folder / MODEL_FILE),
        image=ImageParams(**result.parameters["image"]),
        threshold=result.threshold.value,
        calibration=_calibration(result),
        familiarity=_familiarity(result.familiarity),
    )


def _load(file: Path) -> Any:
    # Imported here: the command line asks for runs without waiting for them.
    from pneumolib.errors import ModelError as FileRefused
    from pneumolib.learning.devices import import_keras
    from pneumolib.learning.files import check_model_file, load_network

    try:
        check_model_file(file)  # before Keras is there: a refusal need not wait for it
        import_keras()
        return load_network(file)
    except FileRefused as fault:
        raise ModelError(str(fault)) from None


def _check_hash(file: Path, recorded: str | None) -> None:
    if recorded is None:
        raise ModelError(
            f"{file}: the {RESULT_FILE} beside it records no hash of it, so nobody can tell whether it is the run's own. Run "
            f"`make report` again, which trains nothing anew where the training is kept; or --force"
        )
    found = file_sha256(file)
    if found != recorded:
        raise ModelError(
            f"{file}: not the file that the run wrote: its SHA-256 is {found[:16]}..., {RESULT_FILE} records {recorded[:16]}.... "
            f"Its threshold and calibration need not fit this network. Get the run's own file, or run it again; or --force"
        )


def _calibration(result: Result) -> Calibration:
    frozen = result.calibration.model_dump()
    return Calibration(**frozen | {name: tuple(frozen[name]) for name in ("logits", "probabilities")})


def _familiarity(kept: FamiliarityResult | None) -> Familiarity | None:
    if kept is None:
        return None
    values = kept.model_dump()
    pairs = {name: {fact: tuple(v) for fact, v in values[name].items()} for name in ("quantiles", "limits")}
    return Familiarity(**values | pairs | {name: tuple(values[name]) for name in ("centre", "precision")})
