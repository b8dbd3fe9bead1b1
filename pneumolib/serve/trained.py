"""One trained network with all that belongs to it, read from `model.keras` and `result.json` and nothing else."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pneumolib.data.facts import TrainingReference
from pneumolib.errors import ModelError, ResultError
from pneumolib.evaluation.calibration import Calibration, Threshold
from pneumolib.params import DataParams, ImageParams
from pneumolib.project import in_root
from pneumolib.provenance import file_sha256
from pneumolib.reporting.results import MODEL_FILE, RESULT_FILE, Result, fault_words, read_result

RESEARCH_ONLY = "Research only, not a medical device."


@dataclass(frozen=True)
class TrainedModel:
    """A network and what was decided with it.

    Attributes:
        folder: where its two files are.
        result: all that is known of its training.
        network: a `keras.Model`; pixels uint8 (n, size_px, size_px, channels) to logits, float32 (n, 1). None as
            `read_trained` gives it.
        image: what `data.load_image` makes of a file for it.
        limits: how large a file may be, as in its training.
        threshold: from probabilities to predicted classes; frozen on validation.
        calibration: from logits to probabilities; frozen on validation.
        ood: what its training images are like; None where the run did not keep it.
    """

    folder: Path
    result: Result
    network: Any
    image: ImageParams
    limits: DataParams
    threshold: Threshold
    calibration: Calibration
    ood: TrainingReference | None

    @property
    def name(self) -> str:
        """`study/run`."""
        return f"{self.result.study}/{self.result.run}"


def trained_runs() -> list[str]:
    """Finished runs of this project that left a network, as `study/run`, by name."""
    models = sorted(in_root("runs").glob(f"*/[!.]*/{MODEL_FILE}"))
    folders = [file.parent for file in models if file.with_name(RESULT_FILE).is_file()]
    return [f"{folder.parent.name}/{folder.name}" for folder in folders]


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
    """The trained model of a run, with its network.

    Args:
        run: its folder, or `study/run`.
        force: take a model file that is not the one the run recorded. It is searched for code all the same.
    Raises:
        ModelError: as `read_trained`, or a file that Keras cannot read.
    """
    model = read_trained(run, force)
    # Imported here: the command line asks for runs without waiting for Keras.
    from pneumolib.learning.devices import import_keras
    from pneumolib.learning.files import load_model

    import_keras()
    network, size = load_model(model.folder / MODEL_FILE), model.image.size_px
    needed = (None, size, size, model.image.channels), (None, 1)
    if (found := (network.input_shape, network.output_shape)) != needed:
        raise ModelError(
            f"{model.folder / MODEL_FILE}: from {found[0]} to {found[1]}; needed is a network from {needed[0]}, one image, "
            f"to {needed[1]}, one number"
        )
    return replace(model, network=network)


def read_trained(run: str | Path, force: bool = False) -> TrainedModel:
    """As `load_trained`, but without the network: nothing is built, and Keras is not imported.

    Raises:
        ModelError: no such run, one without a threshold, a model file that is not the recorded one, or one that must not
            be loaded; see `learning.files`.
    """
    from pneumolib.learning.files import check_model_file

    folder = find_run(run)
    file = folder / MODEL_FILE
    try:
        result = read_result(folder)
    except ResultError as fault:
        raise ModelError(str(fault)) from None
    if result.threshold is None or result.calibration is None:
        raise ModelError(f"{folder}: {RESULT_FILE} holds no threshold and calibration; name the run of a training")
    recorded = result.model_sha256 or "none"
    if not force and (found := file_sha256(file)) != recorded:
        raise ModelError(
            f"{file}: not the file that the run wrote: its SHA-256 is {found[:16]}..., {RESULT_FILE} records {recorded[:16]}. "
            f"Its threshold and calibration need not fit this network. Get the run's own file, or run it again; or --force"
        )
    check_model_file(file)
    try:
        image = ImageParams.model_validate(result.parameters.get("image"))
        limits = DataParams.model_validate(result.parameters.get("data", {}))
    except ValidationError as fault:  # a file that fits the schema can still hold values that no run writes
        raise ModelError(f"{folder / RESULT_FILE}: {fault_words(fault)}") from None
    return TrainedModel(folder, result, None, image, limits, result.threshold, result.calibration, result.ood)
