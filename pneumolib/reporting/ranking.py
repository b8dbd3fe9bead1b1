"""The runs of a study in one table, and their predictions: only where they can be compared."""

from pathlib import Path
from typing import Any

import pandas as pd

from pneumolib.errors import ResultError
from pneumolib.evaluation.metrics import METRICS
from pneumolib.project import in_root
from pneumolib.reporting.results import Result

# Evaluation parameters that may differ between runs of one table: they move neither the values nor the resamples.
_OF_ONE_RUN = {"seeds", "calibration"}


def leaderboard(results: list[Result]) -> pd.DataFrame:
    """One row a training run, ordered by validation AUROC: the order never looks at test.

    A run of several seeds stands with their mean, so that no lucky seed stands for it.

    Columns: `run, seeds, validation_auroc`, then for each test metric `<metric>, <metric>_low, <metric>_high`, `auroc_sd`
    over seeds, then `threshold` (of the run's own seed), `parameters, epochs, minutes, milliseconds_per_image, test_images,
    synthetic`. Empty, with these columns, when there is no training run. What cannot be computed is NaN.
    Raises:
        ResultError: runs of different data, splits or evaluation parameters, whose figures must not stand in one table.
    """
    trained = [r for r in results if r.metrics.get("test")]
    kinds = {(r.data.fingerprint, r.data.split_fingerprint, r.synthetic, str(shared_evaluation(r))) for r in trained}
    if len(kinds) > 1:
        pairs = ", ".join(f"{r.run}: data {r.data.fingerprint}, split {r.data.split_fingerprint}" for r in trained)
        raise ResultError(
            f"runs of different data, splits or evaluation parameters cannot be ranked: {pairs}. Run `make report` again"
        )
    columns = [c for n in METRICS for c in (n, f"{n}_low", f"{n}_high")]
    costs = ["threshold", "parameters", "epochs", "minutes", "milliseconds_per_image", "test_images", "synthetic"]
    table = pd.DataFrame(
        [_leaderboard_row(r) for r in trained],
        columns=["run", "seeds", "validation_auroc", *columns, "auroc_sd", *costs],
    )
    numbers = ["validation_auroc", "auroc_sd", *columns]
    table[numbers] = table[numbers].apply(pd.to_numeric)
    return table.sort_values("validation_auroc", ascending=False, ignore_index=True)


def shared_evaluation(result: Result) -> dict[str, Any]:
    """The evaluation parameters in which runs of one table must agree."""
    return {k: v for k, v in result.parameters.get("evaluation", {}).items() if k not in _OF_ONE_RUN}


def _leaderboard_row(result: Result) -> dict[str, Any]:
    facts = result.facts
    row = {"run": result.run, "seeds": result.seeds(), "validation_auroc": result.metric("auroc", "validation").value}
    for name in METRICS:
        entry = result.metric(name)
        row |= {name: entry.value, f"{name}_low": entry.low, f"{name}_high": entry.high}
    return row | {
        "auroc_sd": result.spread["test"]["auroc"].sd if result.seeds() > 1 else None,
        "threshold": result.threshold.value,
        "minutes": facts["training_seconds"] / 60,
        "synthetic": result.synthetic,
        **{name: facts.get(name) for name in ("parameters", "epochs", "milliseconds_per_image", "test_images")},
    }


def read_predictions(results: list[Result]) -> dict[str, pd.DataFrame]:
    """`predictions.csv` of each training run among `results`, by run."""
    trained = [r for r in results if r.metrics.get("test")]
    return {r.run: read_prediction_table(in_root(f"runs/{r.study}/{r.run}/predictions.csv")) for r in trained}


def read_prediction_table(file: Path) -> pd.DataFrame:
    """A table of predictions as it was written: ids and groups stay text, also where they look like numbers."""
    text = dict.fromkeys(("image_id", "split", "kind", "group_id"), str)
    return pd.read_csv(file, dtype=text, keep_default_na=False)
