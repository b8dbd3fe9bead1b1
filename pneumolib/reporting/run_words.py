"""What a run found, and what it was made from and how, in plain sentences of `template/prose`; pages, card and checklist share them.

What a result does not hold is `NOT`, never a guess; results of runs that left a check out are read like any other.
"""

import contextlib
from typing import Any

import pandas as pd

from pneumolib.errors import ResultError
from pneumolib.evaluation.calibration import Calibration
from pneumolib.project import SMOKE, run_folder
from pneumolib.reporting.prose import sentence
from pneumolib.reporting.results import NOT_COMPUTABLE, Result, read_result

# What is known of the archive behind `kaggle_folder` and `tfrecord`, beside its files.
ARCHIVE = {
    "name": "Kermany, Zhang and Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj, licence CC BY 4.0; described in "
    "Kermany et al., Cell 2018;172:1122-1131, doi:10.1016/j.cell.2018.02.010",
    "patients": "children of one to five years",
    "images": "frontal (antero-posterior) chest radiographs",
    "place": "one hospital in Guangzhou",
    "labels": "Two physicians graded the images, and a third the evaluation set.",
    "groups": "A group stands for a child: series and number of the file name. No table of patients exists to check it by.",
}
NO_AUDIT = "No audit of these images is at hand: shortcuts may be present."


def fact(name: str, result: Result, *more: Any) -> str:
    """One sentence on a run, such as `fact("optimizer", result)`; `NOT` where the result does not hold it.

    `more` are arguments that a sentence takes beside the result.
    """
    return sentence(f"facts.{name}", KNOWN, result, lambda path: asked(result, path), *more)


def headline(result: Result) -> list[str]:
    """What a run found, in paragraphs of plain text, from `template/prose/headline.md.j2`.

    The first is for the index and the terminal too. Empty for a run that judges nothing.
    """
    kinds = [kind for kind in ("equalisation", "external", "audit", "comparison") if kind in result.checks]
    trained = "training" if result.metrics.get("test") else "trained"
    kind = trained if result.metrics else next(iter(kinds), None)
    if kind is None:
        return []
    values = {"r": result, "a": lambda path: asked(result, path), "random": has_random_backbone(result)}
    return sentence(f"headline.{kind}", KNOWN, **values).split("\n\n")


def gravest(result: Result) -> list[dict]:
    """Errors of the audit, then its warnings; what was measured on test only repeats what cross-validation said, and comes last."""
    found = [(f["verdict"], name.endswith("_test"), f) for name, f in result.checks["audit"].items()]
    return [f for verdict, _, f in sorted(found, key=lambda entry: entry[:2]) if verdict in ("error", "warning")]


def has_random_backbone(result: Result) -> bool:
    """Whether the run's backbone, or that of the run it continues, began with random weights: no transfer learning."""
    if before := result.checks.get("continues"):
        with contextlib.suppress(ResultError):  # it may be at work again, or have failed
            return has_random_backbone(read_result(run_folder(result.study, before)))
    return asked(result, "model.backbone") is not None and asked(result, "model.weights") == "none"


def asked(result: Result, path: str) -> Any:
    """A parameter by its full name, such as `image.size_px`; None where the result does not hold it."""
    value: Any = result.parameters
    for part in path.split("."):
        value = (value or {}).get(part)
    return value


def is_archive(result: Result) -> bool:
    """Whether the images are the archive's, so that what is known of it may be said."""
    return not result.synthetic and asked(result, "data.source") in ("kaggle_folder", "tfrecord")


def is_smoke(result: Result) -> bool:
    """Whether the study was run small, so that figures mean nothing."""
    return result.study.endswith(SMOKE)


def calibration_of(result: Result) -> Calibration:
    """The frozen map from logit to calibrated probability."""
    return Calibration(**result.calibration.model_dump())


def source_limits(result: Result) -> list[str]:
    """What the images keep the figures from saying."""
    return fact("limits", result).split("\n\n")


def change_to_test(result: Result) -> float | None:
    """Test AUROC less that of validation; None where one is missing."""
    before, after = (result.own("auroc", part) for part in ("validation", "test"))
    return after.value - before.value if before and after and None not in (before.value, after.value) else None


def flat(values: dict) -> dict[str, str]:
    """A nested dict of figures as one: the names of the way to each, and the figure for reading."""
    rows = pd.json_normalize(values, sep=", ").astype(object).to_dict("records")
    return {name: number(value) for row in rows for name, value in row.items()}


def number(value: Any) -> str:
    """A figure of a check for reading."""
    if value is None or value != value:
        return NOT_COMPUTABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# What the templates of facts, headlines and checklists may ask for.
KNOWN = {f.__name__: f for f in (asked, calibration_of, change_to_test, fact, flat, gravest, is_archive, is_smoke, number,
                                 source_limits)}  # fmt: skip
KNOWN |= {"ARCHIVE": ARCHIVE, "NO_AUDIT": NO_AUDIT}
