"""Does it hold for the parts as for the whole? Kinds of pneumonia, hospitals, and test without images that may be related to training."""

import numpy as np
import pandas as pd

from pneumolib.evaluation.intervals import resample
from pneumolib.evaluation.metrics import check_predictions
from pneumolib.params import EvaluationParams

SHOWN = ("auroc", "sensitivity", "specificity")
SITE, UNRELATED = "site ", "unrelated to training "  # what the names of such parts start with
_KINDS = ("bacteria", "virus")


def subgroup_table(
    predictions: pd.DataFrame,
    split: str,
    threshold: float,
    params: EvaluationParams,
    seed: int,
    related: pd.DataFrame | None = None,
    sites: pd.Series | None = None,
) -> pd.DataFrame:
    """AUROC, sensitivity and specificity of parts of a split, all on the same resamples.

    Args:
        predictions: columns `PREDICTION_COLUMNS`; `kind` is bacteria, virus or normal where that is known.
        split: `val` or `test`.
        threshold: on the probability, frozen.
        params, seed: as for `metric_table`.
        related: from `audit.sensitivity_list`: `image_id`, and a True in a column for each reason to leave an image out.
        sites: hospital by `image_id`; empty where none is named. Parts are made where there are two or more.
    Returns:
        one row a part, all images first: `part, images, pneumonia, groups`, and of each of `SHOWN` `<metric>`,
        `<metric>_low`, `<metric>_high`; NaN where a class is missing or an interval cannot be computed.
    """
    rows = check_predictions(predictions, split).sort_values("image_id", ignore_index=True)
    resamples, table = resample(rows, params, seed), []
    for part, kept in _parts(rows, related, sites).items():
        value, limits = resamples.metric_limits(rows.probability, threshold, kept)
        of_class = rows[kept].groupby("label").group_id.nunique().reindex([0, 1], fill_value=0)
        row = {"part": part, "images": int(kept.sum()), "pneumonia": int(rows.label[kept].sum()),
               "groups": rows.group_id[kept].nunique()}  # fmt: skip
        for name in SHOWN:
            low, high = limits[name] if of_class.min() >= 2 else (np.nan, np.nan)
            row |= {name: value[name], f"{name}_low": low, f"{name}_high": high}
        table.append(row)
    return pd.DataFrame(table)


def _parts(rows: pd.DataFrame, related: pd.DataFrame | None, sites: pd.Series | None) -> dict[str, np.ndarray]:
    """Name of each part to a mask of its rows; parts that would be the whole or empty are left out."""
    normal = (rows.label == 0).to_numpy()
    parts = {f"{kind} against normal": normal | (rows.kind == kind).to_numpy() for kind in _KINDS}
    parts = {name: kept for name, kept in parts.items() if kept.sum() > normal.sum()}
    if related is not None:
        for reason in related.columns.drop("image_id"):
            out = rows.image_id.isin(related.image_id[related[reason]]).to_numpy()
            parts[f"{UNRELATED}({reason.replace('_', ' ')})"] = ~out
    if sites is not None:
        of_row = rows.image_id.map(sites).fillna("")
        parts |= {f"{SITE}{name}": (of_row == name).to_numpy() for name in sorted(set(of_row) - {""})}
    parts = {name: kept for name, kept in parts.items() if 0 < kept.sum() < len(rows)}
    return {"all": np.ones(len(rows), bool)} | parts
