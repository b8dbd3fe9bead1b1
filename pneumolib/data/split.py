"""Who trains, validates, tests? The official test stays as it is; validation is cut from the pool by whole groups.

Contract: one row an image, columns `image_id, split, label, kind, group_id`, sorted by `image_id`; `split` is
`train`, `val` or `test`; no group in two splits.
"""

import hashlib

import pandas as pd

from pneumolib.params import SplitParams

COLUMNS = ["image_id", "split", "label", "kind", "group_id"]


class SplitError(ValueError):
    """A split that would leak or be skewed; the message names groups and numbers."""


def split_manifest(table: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Assign every image to train, val or test.

    Within each kind, groups are put in an order given by a hash of (seed, group_id), and taken for validation as
    long as they bring its share nearer to `validation_fraction`. The order of rows plays no part, and adding a
    patient moves few others.

    Args:
        table: `Manifest.table`, in any order of rows.
        params: `validation_fraction`, `seed`, `ratio_tolerance_points`.
    Raises:
        SplitError: see `check_split`.
    """
    pool = table[table.source_split != "test"]
    chosen = set()
    for _, rows in pool.groupby("kind"):
        chosen |= _choose_groups(rows.group_id.value_counts(), params)
    result = table.sort_values("image_id", ignore_index=True)
    is_test = result.source_split == "test"
    result["split"] = "train"
    result.loc[~is_test & result.group_id.isin(chosen), "split"] = "val"
    result.loc[is_test, "split"] = "test"
    result = result[COLUMNS]
    check_split(result, params.ratio_tolerance_points)
    return result


def _choose_groups(sizes: pd.Series, params: SplitParams) -> set[str]:
    """Groups of one kind whose images add up to the wanted fraction as nearly as whole groups allow."""
    wanted, taken, chosen = params.validation_fraction * sizes.sum(), 0, set()
    for group in sorted(sizes.index, key=lambda g: hashlib.sha256(f"{params.seed}:{g}".encode()).digest()):
        if abs(taken + sizes[group] - wanted) < abs(taken - wanted):
            chosen.add(group)
            taken += sizes[group]
    return chosen


def check_split(split: pd.DataFrame, tolerance_points: float) -> None:
    """Raise `SplitError` unless groups are disjoint, all parts hold both classes, and the class ratio is kept.

    A wrong group key makes giant groups, and those skew validation; so the share of pneumonia in validation must lie
    within `tolerance_points` (percentage points) of the whole pool's.
    """
    parts = split.groupby("group_id").split.nunique()
    if crossing := list(parts[parts > 1].index):
        raise SplitError(f"{len(crossing)} group(s) stand in more than one split: {', '.join(crossing[:10])}")
    for name in ("train", "val", "test"):
        labels = set(split.label[split.split == name])
        if labels != {0, 1}:
            raise SplitError(
                f"the {name} split holds {'no images' if not labels else f'only label {labels.pop()}'}; both classes "
                f"are needed. Raise split.validation_fraction, or bring more patients"
            )
    pool = split[split.split != "test"]
    shares = 100 * pool[pool.split == "val"].label.mean(), 100 * pool.label.mean()
    if abs(shares[0] - shares[1]) > tolerance_points:
        largest = pool.group_id.value_counts().head(3)
        raise SplitError(
            f"pneumonia is {shares[0]:.1f}% of validation but {shares[1]:.1f}% of the training pool; allowed "
            f"difference: split.ratio_tolerance_points {tolerance_points}. Largest groups: "
            f"{', '.join(f'{group} ({n} images)' for group, n in largest.items())}. If one is far larger than a "
            f"patient's series, the group key is wrong"
        )
