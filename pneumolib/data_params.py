"""Where do images come from? The sections of a run's parameters on sources: the study's own, and another one to try a model on."""

from typing import Annotated, Literal

from pydantic import Field

from pneumolib.model_params import Section


class DataParams(Section):
    """Where the radiographs come from: `data.sources`. Paths are relative to the project's root unless absolute.

    `root` is a folder, for `csv` and `npz` a file; for `tfrecord` it may be a bucket (`gs://...`).

    Of a synthetic source `hospital: 1` is drawn in the archive's layout, 2 as those of another place: other exposure, borders,
    marks, sizes and share of pneumonia, in a table of paths (`data.second_hospital`).
    """

    source: Literal["synthetic", "kaggle_folder", "tfrecord", "csv", "npz"] = "kaggle_folder"
    root: Annotated[str, Field(min_length=1)] = "data/chest_xray"
    val_folder: Literal["join", "leave_out"] = "join"  # the archive's 16 val images are too few to validate on
    n_images: Annotated[int, Field(ge=24, le=100_000)] = 400  # drawn when source is synthetic
    drawing_seed: Annotated[int, Field(ge=0)] = 1
    hospital: Literal[1, 2] = 1


class ExternalParams(Section):
    """Images from another source that a frozen model is tried on, by `07_external_validation`.

    `run` is the run of the same study whose `model.keras`, threshold and calibration are used. All images of `data` count,
    whatever split they stand in there. `recalibration_fraction` of its groups are set apart, cut by `seed`: on them a
    threshold and a calibration are chosen anew, to see on the others what that would bring.
    """

    run: Annotated[str, Field(pattern=r"^\d\d_[\w.-]+$")] = "03_baseline_cnn"
    data: DataParams = DataParams(source="csv", root="data/external/table.csv")
    recalibration_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
