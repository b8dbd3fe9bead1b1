"""The runs of a study against each other, from their results and predictions."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import Markdown

from pneumolib.evaluation.compare import paired_differences, secondary_tests
from pneumolib.evaluation.curves import curve_bands
from pneumolib.params import EvaluationParams
from pneumolib.reporting.prose import say
from pneumolib.reporting.ranking import leaderboard, read_predictions
from pneumolib.reporting.results import Result


@dataclass(frozen=True)
class Comparison:
    """All training runs of a study on the same test images and the same resamples.

    Attributes:
        reference: the run that is best on validation; None without a finished run.
        differences: `evaluation.paired_differences` from it; empty with fewer than two runs.
        tests: `evaluation.secondary_tests` against it; empty likewise.
        bands: run to `evaluation.curve_bands`.
    """

    reference: str | None
    differences: pd.DataFrame
    tests: pd.DataFrame
    bands: dict[str, pd.DataFrame]


def compare_runs(results: list[Result]) -> Comparison:
    """Every training run among `results` against the one that is best on validation, each at its own frozen threshold.

    Of a run of several seeds the predictions are those of its own seed.

    Raises:
        ResultError: see `leaderboard`.
    """
    board, predictions = leaderboard(results), read_predictions(results)
    if board.empty:
        return Comparison(None, pd.DataFrame(), pd.DataFrame(), {})
    options = _resampling(results)
    bands = {run: curve_bands(predictions[run], **options) for run in board.run}
    reference = str(board.run.iloc[0])
    if len(board) == 1:
        return Comparison(reference, pd.DataFrame(), pd.DataFrame(), bands)
    ordered = {run: predictions[run] for run in board.run}
    thresholds = {result.run: result.threshold.value for result in results if result.run in ordered}
    differences = paired_differences(ordered, "test", thresholds, reference, **options)
    return Comparison(reference, differences, secondary_tests(ordered, "test", thresholds, reference), bands)


def _resampling(results: list[Result]) -> dict[str, Any]:
    """Evaluation parameters and seed, which `leaderboard` found to be the same in all training runs."""
    parameters = next(r.parameters for r in results if r.metrics.get("test"))
    return {"params": EvaluationParams(**parameters["evaluation"]), "seed": parameters["split"]["seed"]}


def difference_summary(compared: Comparison) -> Markdown:
    """Which runs differ from the reference in AUROC by more than chance, in words."""
    if compared.differences.empty:
        return Markdown("There are no two finished runs to compare.")
    rows = compared.differences
    aurocs = rows[(rows.metric == "auroc") & (rows.name != compared.reference)]
    return say("training.differences", rows=aurocs.to_dict("records"), reference=compared.reference)
