"""Who trains, validates, tests? The official test stays as it is; validation is cut from the pool by whole groups.

Contract: one row an image, columns `image_id, split, label, kind, group_id`, sorted by `image_id`; `split` is
`train`, `val` or `test`; no group in two splits. Images of another source are all of split `external`, and their `part` is
`recalibration` or `evaluation`.
"""

import hashlib

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pneumolib.data.patients import one_spelling
from pneumolib.errors import DataError
from pneumolib.params import ExternalParams, SplitParams

COLUMNS = ["image_id", "split", "label", "kind", "group_id"]
EXTERNAL = "external"
PARTS = ("recalibration", "evaluation")
_TEST_SEED = 0  # one for all studies, so that test stays the same when `split.seed` changes
_REMEDIES = {
    "train": "Lower split.validation_fraction, or bring more patients",
    "val": "Raise split.validation_fraction, or bring more patients; split.validation: as_published needs "
    "data.val_folder: join and a val split in the source",
    "test": "The source names no test images. Add a column `split` with train and test, or set split.test_fraction: 0.2",
}


def split_manifest(table: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Assign every image to train, val or test.

    Within each kind, groups are put in an order given by a hash of (seed, group_id), and taken for validation as
    long as they bring its share nearer to `validation_fraction`. The order of rows plays no part, and adding a
    patient moves few others. Groups that share an image, pixel for pixel, go the same way. Test is cut first, in the
    same way, where the source names none and `test_fraction` is set.

    Args:
        table: `Manifest.table`, in any order of rows.
        params: `validation`, `validation_fraction`, `test_fraction`, `seed`, `ratio_tolerance_points`.
    Raises:
        DataError: see `check_split`.
    """
    result = table.sort_values("image_id", ignore_index=True)
    result["split"] = result.source_split
    if params.test_fraction:
        if named := int((result.split == "test").sum()):
            said = f"the source names {named} test images already; delete the key"
            raise DataError(f"split.test_fraction {params.test_fraction:g}: {said}")
        result.loc[_chosen(result, result.kind, params.test_fraction, _TEST_SEED), "split"] = "test"
    if params.validation == "cut":
        pool = result[result.split != "test"]
        chosen = _chosen(pool, pool.kind, params.validation_fraction, params.seed)
        result.loc[pool.index, "split"] = np.where(chosen, "val", "train")
    result = result[COLUMNS]
    check_split(result, params.ratio_tolerance_points)
    return result


def split_external(table: pd.DataFrame, params: ExternalParams) -> pd.DataFrame:
    """Cut the images of another source into those to recalibrate on and those to evaluate on.

    As for validation: whole groups, each kind of each site for itself, and groups that share an image together. Splits of the
    source play no part: a model that was trained elsewhere has seen none of them.

    Args:
        table: `Manifest.table` of that source, in any order of rows.
        params: `recalibration_fraction`, `seed`.
    Returns:
        columns `COLUMNS`, `split` being `external`, then `part`, one of `PARTS`, and `site`; sorted by `image_id`.
    Raises:
        DataError: a part without one of the classes.
    """
    result = table.sort_values("image_id", ignore_index=True).assign(split=EXTERNAL)
    cells = result.kind + "\0" + result.site
    result["part"] = np.where(_chosen(result, cells, params.recalibration_fraction, params.seed), *PARTS)
    remedy = f"Change external.recalibration_fraction {params.recalibration_fraction:g}, or bring more patients"
    _need_both_classes(result, "part", dict.fromkeys(PARTS, remedy))
    return result[[*COLUMNS, "part", "site"]]


def without_shared(table: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The images of another source without the groups of which an image is, pixel for pixel, among a study's own.

    Collections of radiographs take in older ones, the archive among them; a model would then be tried on what it was
    trained on. Copies that were resized or saved anew with a loss are not found.

    Args:
        table, own: `Manifest.table` of the other source, and of the study's.
    """
    known = table.group_id[table.pixel_hash.isin(own.pixel_hash)]
    return table[~table.group_id.isin(known)].reset_index(drop=True)


def _chosen(table: pd.DataFrame, cells: pd.Series, fraction: float, seed: int) -> pd.Series:
    """Whether each image goes to the smaller part: of each cell as near to the fraction as whole units allow."""
    units, chosen = _units(table), set()
    for _, of_kind in units.groupby(cells):
        sizes, taken = of_kind.value_counts(), 0
        wanted = fraction * len(of_kind)
        for unit in sorted(sizes.index, key=lambda unit: hashlib.sha256(f"{seed}:{unit}".encode()).digest()):
            if abs(taken + sizes[unit] - wanted) < abs(taken - wanted):
                chosen.add(unit)
                taken += sizes[unit]
    return units.isin(chosen)


def _units(table: pd.DataFrame) -> pd.Series:
    """What is cut as one: a group, or groups tied together by equal images, named after the first of them."""
    groups, names = pd.factorize(one_spelling(table.group_id), sort=True)
    images, contents = pd.factorize(table.pixel_hash)
    # Groups and images as two kinds of nodes, a row of the table as an edge between them.
    edges = (np.ones(len(table)), (groups, len(names) + images))
    nodes = len(names) + len(contents)
    part = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)[1][: len(names)]
    first = pd.Series(names).groupby(part).transform("first")  # sorted, so the first is the least
    return pd.Series(first.to_numpy()[groups], index=table.index)


def check_split(split: pd.DataFrame, tolerance_points: float) -> None:
    """Raise `DataError` unless groups are disjoint, all parts hold both classes, and the class ratio is kept.

    A wrong group key makes giant groups, and those skew validation; so the share of pneumonia in validation must lie
    within `tolerance_points` (percentage points) of the whole pool's.
    """
    parts = split.groupby(one_spelling(split.group_id)).split.nunique()
    if crossing := list(parts[parts > 1].index):
        raise DataError(f"{len(crossing)} group(s) appear in more than one split: {', '.join(crossing[:10])}")
    _need_both_classes(split, "split", _REMEDIES)
    pool = split[split.split != "test"]
    shares = 100 * pool[pool.split == "val"].label.mean(), 100 * pool.label.mean()
    if abs(shares[0] - shares[1]) > tolerance_points:
        largest = ", ".join(f"{group} ({n} images)" for group, n in pool.group_id.value_counts().head(3).items())
        raise DataError(
            f"pneumonia is {shares[0]:.1f}% of validation but {shares[1]:.1f}% of the training pool; allowed difference: "
            f"split.ratio_tolerance_points {tolerance_points}. Largest groups: {largest}. If one is far larger than a "
            f"patient's series, the group key is wrong"
        )


def _need_both_classes(table: pd.DataFrame, column: str, remedies: dict[str, str]) -> None:
    for part, remedy in remedies.items():
        groups = table[table[column] == part].groupby("label").group_id.nunique()
        if len(groups) < 2:
            counts = f"{groups.get(0, 0)} group(s) of normal and {groups.get(1, 0)} of pneumonia"
            raise DataError(f"the {part} {column} has {counts}; both classes are needed. {remedy}")
