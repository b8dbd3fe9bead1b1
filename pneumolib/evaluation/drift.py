"""Do images look like those of training? Facts of another source beside a model's `TrainingReference`, and whether errors gather there."""

import numpy as np
import pandas as pd

from pneumolib.data.ood import QUANTILES, TrainingReference, ood_warnings
from pneumolib.data.split import EXTERNAL
from pneumolib.evaluation.intervals import resample, unpaired_difference
from pneumolib.evaluation.metrics import check_predictions
from pneumolib.params import EvaluationParams

_LOW, _MEDIAN, _HIGH = (QUANTILES.index(q) for q in (0.025, 0.5, 0.975))
_NOTHING = (np.nan, np.nan)


def drift_table(familiarity: TrainingReference, facts: pd.DataFrame) -> pd.DataFrame:
    """Each fact in training and in another source.

    Args:
        facts: from `data.describe_images`.
    Returns:
        one row a fact: `fact`; `training_low, training_median, training_high`, the ends of the middle 95% of training images
        and the middle; `low, median, high`, the same of these images; `outside`, the share of these images beyond training's
        ends, where one in twenty is to be expected; `flagged`, the share beyond the limits of a warning.
    """
    unusual, rows = familiarity.unusual(facts[list(familiarity.quantiles)]), []
    for fact, quantiles in familiarity.quantiles.items():
        ends, values = (quantiles[_LOW], quantiles[_HIGH]), facts[fact]
        low, median, high = np.quantile(values, [QUANTILES[i] for i in (_LOW, _MEDIAN, _HIGH)])
        rows.append({"fact": fact, "training_low": ends[0], "training_median": quantiles[_MEDIAN], "training_high": ends[1],
                     "low": low, "median": median, "high": high, "outside": 1 - values.between(*ends).mean(),
                     "flagged": unusual[fact].mean()})  # fmt: skip
    return pd.DataFrame(rows)


def alarm_table(familiarity: TrainingReference, facts: pd.DataFrame) -> pd.DataFrame:
    """Share of images with a warning of each kind, and of `any`: `kind, false_alarms` (on validation), `flagged` (of these)."""
    shares = ood_warnings(familiarity, facts).mean()
    rates = [familiarity.validation_warnings[kind] for kind in shares.index]
    return pd.DataFrame(
        {"kind": shares.index, "false_alarms": pd.to_numeric(pd.Series(rates)), "flagged": shares.to_numpy()}
    )


def errors_among(
    predictions: pd.DataFrame, flagged: pd.Series, threshold: float, params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """Are images that look unlike training called wrongly more often?

    Args:
        predictions: of split `external`.
        flagged: bool by `image_id`, see `data.familiarity.alarms`.
        threshold: frozen.
    Returns:
        one row for `flagged` and one for `others`: `images, errors`, `share` of errors with `_low, _high`; the first row also
        `difference` from the others with limits put together from both (`unpaired_difference`), because a part may have no
        error. NaN where a part is empty.
    """
    rows = check_predictions(predictions, EXTERNAL).sort_values("image_id", ignore_index=True)
    marked, resamples = rows.image_id.map(flagged).to_numpy(bool), resample(rows, params, seed)
    wrong, found = ((rows.probability >= threshold) != (rows.label == 1)).to_numpy(), []
    for name, kept in (("flagged", marked), ("others", ~marked)):
        row = {"part": name, "images": int(kept.sum()), "errors": int(wrong[kept].sum())}
        low, high = _NOTHING
        if kept.any():
            low, high = resamples.metric_limits(rows.probability, threshold, kept)[1]["accuracy"]
        found.append(
            row | {"share": wrong[kept].mean() if kept.any() else np.nan, "share_low": 1 - high, "share_high": 1 - low}
        )
    sides = [[row[f"share{end}"] for end in ("", "_low", "_high")] for row in found]
    found[0] |= unpaired_difference(*sides)
    return pd.DataFrame(found)
