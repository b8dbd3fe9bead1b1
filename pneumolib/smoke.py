"""A study run small, to see that all of it runs: few drawn images, one epoch, random weights. Its figures mean nothing."""

from pneumolib.params import SMOKE, RunParams, check

IMAGES = 24  # of which the split below makes both classes everywhere
ROOT = "data/smoke"
SECOND = {"source": "synthetic", "root": "data/smoke-hospital-2", "n_images": IMAGES, "hospital": 2}
STAND_IN = "MobileNetV2"  # for a backbone from a file, which need not be there
LARGEST_BATCH = 8  # which the eight chips of a Kaggle TPU can share
FEWEST_RESAMPLES = 50
CORRUPTED = 8  # images, in the first two ways that the study asks for


def smoke_params(params: RunParams) -> RunParams:
    """`params` of a run, made small, as those of study `<study>-smoke`.

    Images keep their size, and everything that decides which code runs stays as it is.
    """
    values = params.model_dump()
    values["study"] += SMOKE
    values["data"] = {"source": "synthetic", "root": ROOT, "n_images": IMAGES}
    values["split"] = {"validation_fraction": 0.3, "ratio_tolerance_points": 25.0}
    values["model"] |= _untrained(params)
    values["features"]["views"] = min(params.features.views, 1)
    if params.fine_tuning.unfreeze != "all" and isinstance(params.fine_tuning.unfreeze, str):
        values["fine_tuning"]["unfreeze"] = "all"  # a stand-in has no layer of that name
    batch_size = min(params.training.batch_size, LARGEST_BATCH)
    values["training"] |= {"epochs": 1, "batch_size": batch_size, "warmup_epochs": 0.0}
    values["audit"]["folds"] = 2
    if params.evaluation.threshold_rule == "binormal":
        values["evaluation"]["threshold_rule"] = "youden"  # one epoch need not bring the classes into their order
    values["evaluation"]["seeds"] = params.evaluation.seeds[:1]
    values["evaluation"]["threshold_views"] = min(params.evaluation.threshold_views, 1)
    values["evaluation"]["resamples"] = min(params.evaluation.resamples, FEWEST_RESAMPLES)
    values["robustness"]["images"] = min(params.robustness.images, CORRUPTED)
    values["robustness"]["corruptions"] = params.robustness.corruptions[:2]
    values["external"] |= {"data": SECOND, "recalibration_fraction": 0.5}
    return check(values, "made small for SMOKE=1")


def _untrained(params: RunParams) -> dict:
    """What becomes of `model`: weights are neither fetched nor looked for."""
    if params.model.from_file:
        return {"backbone": STAND_IN, "weights": "none", "preprocess": None}
    return {"weights": "none"} if params.model.backbone else {}
