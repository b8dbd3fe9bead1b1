"""What is luck? The same training from several seeds: the spread over seeds, and the interval of their mean, apart.

The spread says how much another random start would have changed; the interval says how much other children would have.
The best seed stands nowhere alone: to pick it is to pick luck.
"""

import numpy as np
import pandas as pd

from pneumolib.evaluation.intervals import resample
from pneumolib.evaluation.metrics import METRICS, PREDICTION_COLUMNS, EvaluationError, check_predictions
from pneumolib.evaluation.thresholds import choose_threshold
from pneumolib.params import EvaluationParams

COLUMNS = ["metric", "seeds", "mean", "low", "high", "sd", "lowest", "highest"]


def seed_tables(
    own: pd.DataFrame, threshold: float, others: dict[int, pd.DataFrame], params: EvaluationParams, seed: int
) -> dict[str, pd.DataFrame]:
    """`seed_table` of `val` and `test`, each seed at the threshold that the run's rule gives on its own validation.

    Args:
        own, threshold: predictions of the run's own seed, and its frozen threshold.
        others: from `learning.repeat_seeds`; rows of split `views` are validation in augmented views.
    Returns:
        split to table; empty tables without other seeds.
    """
    frozen = {
        s: choose_threshold(t[t.split == "val"], params, t[t.split == "views"].assign(split="val")).value
        for s, t in others.items()
    }
    every = {"own": own} | others
    return {part: seed_table(every, part, {"own": threshold} | frozen, params, seed) for part in ("val", "test")}


def seed_predictions(others: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """The predictions of all other seeds in one table, to be kept; `seed` is its first column."""
    if not others:
        return pd.DataFrame(columns=["seed", *PREDICTION_COLUMNS])
    return pd.concat([table.assign(seed=seed) for seed, table in others.items()])[["seed", *PREDICTION_COLUMNS]]


def seed_table(
    predictions: dict[int | str, pd.DataFrame],
    split: str,
    thresholds: dict[int | str, float],
    params: EvaluationParams,
    seed: int,
) -> pd.DataFrame:
    """Each metric's mean over seeds with the interval of that mean, and its spread over seeds.

    Args:
        predictions: training seed to its table, columns `PREDICTION_COLUMNS`.
        split: `val` or `test`.
        thresholds: training seed to the threshold frozen on its own validation.
        params, seed: of the resamples, which are the same for all.
    Returns:
        one row a metric, columns `COLUMNS`: `low` and `high` are of the mean, `sd` is over seeds. Empty with fewer than
        two seeds, which have no spread.
    Raises:
        EvaluationError: seeds that were scored on other images.
    """
    if len(predictions) < 2:
        return pd.DataFrame(columns=COLUMNS)
    tables = {s: check_predictions(t, split).sort_values("image_id") for s, t in predictions.items()}
    base = next(iter(tables.values()))
    if any(t.image_id.tolist() != base.image_id.tolist() for t in tables.values()):
        raise EvaluationError(f"seeds {list(predictions)} were scored on different images of split {split!r}")
    resamples = resample(base, params, seed)
    scored = [resamples.score(table.probability, thresholds[s]) for s, table in tables.items()]
    values, rows = pd.DataFrame([value for value, _ in scored]), []
    for metric in METRICS:
        own, (low, high) = values[metric], resamples.limits(np.mean([draws[metric] for _, draws in scored], axis=0))
        rows.append({"metric": metric, "seeds": len(own), "mean": own.mean(skipna=False), "low": low, "high": high,
                     "sd": own.std(skipna=False), "lowest": own.min(), "highest": own.max()})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
