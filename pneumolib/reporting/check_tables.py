"""Checks of a result as text for reading, whatever rows and keys they hold: numbers, intervals and names of columns."""

from typing import Any

import pandas as pd

from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting.results import NOT_COMPUTABLE, interval


def number(value: Any) -> str:
    """A figure of a check for reading."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return NOT_COMPUTABLE
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def readable(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """A check's table for reading: names of columns, and rows of text; `<x>_low` and `<x>_high` are folded into `<x>`.

    Args:
        rows: as `result.json` keeps them.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    ends = {key + end for key in keys for end in ("_low", "_high")}
    shown = [key for key in keys if key not in ends]
    return [title(key) for key in shown], [[_cell(row, key) for key in shown] for row in rows]


def _cell(row: dict, key: str) -> str:
    if key not in row:
        return ""
    signed = key.endswith("_change") or key == "intercept"
    if f"{key}_low" in row:
        return interval(row[key], row[f"{key}_low"], row.get(f"{key}_high"), signed=signed)
    return f"{row[key]:+.3f}" if signed and row[key] is not None else number(row[key])


def title(key: str) -> str:
    """`auroc_change` as `AUROC change`."""
    known = METRIC_NAMES | {"ece": "ECE", "ece_floor": "ECE floor", "sd": "SD", "low": "Low", "p": "p"}
    stem = key.removesuffix("_change")
    words = known.get(stem, stem.replace("_", " ").capitalize())
    return f"{words} change" if stem != key else words


def flat(values: dict, before: str = "") -> list[tuple[str, str]]:
    """A nested dict of figures as (name, value) pairs; lists of plain values in one cell."""
    pairs = []
    for key, value in values.items():
        name = f"{before}, {key}" if before else str(key)
        if isinstance(value, dict):
            pairs += flat(value, name)
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            for n, v in enumerate(value, start=1):
                pairs += flat(v, f"{name} {n}") if isinstance(v, dict) else [(f"{name} {n}", number(v))]
        else:
            pairs.append((name, ", ".join(map(number, value)) if isinstance(value, list) else number(value)))
    return pairs
