"""Leakage between splits: does a patient or an image appear in two of them? Groups under three keys, and duplicates.

The archive's names carry a number that restarts for each series (bacteria, virus, IM, NORMAL2-IM), so the key is
(series, number). Whoever takes the number alone finds children in both training and test. No table of patients was
ever published; so the test images concerned are listed, for a sensitivity analysis that leaves them out.

Of duplicates only exact equality is looked for, of bytes or of pixels: on this archive, perceptual hashes at a distance of 4
paired normal with pneumonia.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

KEYS = {
    "series_and_number": "series and number",
    "merged_bacteria_virus": "number, with bacteria and virus as one series",
    "merged_all": "number, with bacteria and virus, and IM and NORMAL2-IM, as one series each",
}
WIDER = list(KEYS)[1:]
_ARCHIVE_ID = r"^(?P<series>bacteria|virus|IM|NORMAL2-IM)-(?P<number>\d+)$"
_PERSON = {"bacteria": "person", "virus": "person"}
_MERGED = {"merged_bacteria_virus": _PERSON, "merged_all": _PERSON | {"IM": "normal", "NORMAL2-IM": "normal"}}
# A child's series is short. A group that holds a twentieth of all images, and ten times what is usual in its kind, is
# more likely many children under one key.
_GIANT_SHARE, _GIANT_TIMES = 0.05, 10


@dataclass(frozen=True)
class Finding:
    """One thing the audit looked at.

    Attributes:
        name: snake_case key in `result.json`.
        verdict: `ok`; `note`, worth knowing; `warning`, figures may mislead; `error`, to be mended before training.
        value: what was counted or computed, None where that was not possible.
        sentence: plain words with the number in them, ending with what it means.
        low, high: ends of the interval, None or NaN where there is none.
    """

    name: str
    verdict: Literal["ok", "note", "warning", "error"]
    value: float | int | None
    sentence: str
    low: float | None = None
    high: float | None = None


def as_checks(findings: Iterable[Finding]) -> dict[str, dict]:
    """`{name: {"verdict", "value", "low", "high", "sentence"}}`, for `result.json`; of two of one name the last."""
    keys = ("verdict", "value", "low", "high", "sentence")
    return {finding.name: {key: getattr(finding, key) for key in keys} for finding in findings}


def shared_groups(table: pd.DataFrame, split: pd.DataFrame | None = None) -> pd.DataFrame:
    """Groups with images in both the training pool (train and val) and test, one row a key.

    Args:
        table: `Manifest.table`.
        split: from `split_manifest`; without it the source's own folders decide.
    Returns:
        `key` in words, `groups` in all, `shared` by pool and test, `test_images` in the shared ones. Group ids that are
        not of the archive's form have no number to merge, and get one row only.
    """
    placed = _placed(table, split)
    names, rows = placed.columns.intersection(list(KEYS)), []
    for name in names:
        shared, concerned = _overlap(placed, name)
        key = KEYS[name] if len(names) > 1 else "group, as the source names it"
        rows.append([key, placed[name].nunique(), len(shared), int(concerned.sum())])
    return pd.DataFrame(rows, columns=["key", "groups", "shared", "test_images"])


def sensitivity_list(table: pd.DataFrame, split: pd.DataFrame | None = None) -> pd.DataFrame:
    """Test images that share a number with the training pool under the wider keys.

    Contract: `image_id, merged_bacteria_virus, merged_all`, sorted by `image_id`; only images with a True somewhere.
    The analysis for a key leaves out the images whose column is True: every image of the first is in the second too.
    Empty, with these columns, where nothing is shared or group ids are not of the archive's form.
    """
    placed = _placed(table, split)
    marks = pd.DataFrame({"image_id": placed.image_id} | dict.fromkeys(WIDER, False))
    for name in placed.columns.intersection(WIDER):
        marks[name] = _overlap(placed, name)[1]
    return marks[marks[WIDER].any(axis=1)].sort_values("image_id", ignore_index=True)


def group_findings(table: pd.DataFrame, split: pd.DataFrame) -> list[Finding]:
    """`groups_across_splits` (error unless 0), `groups_<wider key>` (notes), `group_sizes`; see the module."""
    placed = _placed(table, split)
    spread = placed.groupby("series_and_number").part.nunique()
    crossing, verdict = sorted(spread.index[spread > 1]), "ok"
    words = f"None of {len(spread)} groups stands in two of train, val and test: no patient crosses, as far as group ids tell."
    if len(spread) == len(placed):
        verdict = "note"
        words = f"Each of the {len(spread)} images is a group of its own: whether a patient crosses cannot be told."
    elif crossing:
        verdict = "error"
        words = (
            f"{len(crossing)} of {len(spread)} groups stand in more than one of train, val and test: "
            f"{', '.join(crossing[:5])}. The network is judged on patients it was trained on."
        )
    found = [Finding("groups_across_splits", verdict, len(crossing), words)]
    found += [_wider_finding(name, placed) for name in placed.columns.intersection(WIDER)]
    return [*found, _size_finding(table)]


def _placed(table: pd.DataFrame, split: pd.DataFrame | None) -> pd.DataFrame:
    """`image_id, part` and the group under each key that applies; without images that the split leaves out."""
    part = table.source_split if split is None else table.image_id.map(split.set_index("image_id").split)
    placed = pd.DataFrame({"image_id": table.image_id, "part": part, "series_and_number": table.group_id})
    parsed = table.group_id.str.extract(_ARCHIVE_ID)
    if parsed.notna().all(axis=None):
        for name, merged in _MERGED.items():
            placed[name] = parsed.series.replace(merged) + "-" + parsed.number.astype(int).astype(str)
    return placed[placed.part.notna()]


def _overlap(placed: pd.DataFrame, key: str) -> tuple[set[str], pd.Series]:
    """Groups that the training pool and test share under `key`, and a mark on the test images in them."""
    in_test = placed.part == "test"
    shared = set(placed[key][in_test]) & set(placed[key][~in_test])
    return shared, in_test & placed[key].isin(shared)


def _wider_finding(name: str, placed: pd.DataFrame) -> Finding:
    """Shared numbers, and how many of them are of one series on both sides: those alone would be evidence."""
    shared, concerned = _overlap(placed, name)
    differing = len(shared) - placed[name][_overlap(placed, "series_and_number")[1]].nunique()
    key, name = KEYS[name], f"groups_{name}"
    if not (placed.part == "test").any():
        return Finding(name, "note", None, f"By {key}: not computable, because there are no test images.")
    if not shared:
        return Finding(
            name, "ok", 0, f"By {key}, no group is shared by the training pool and test: this key changes nothing."
        )
    words = (
        f"By {key}, the training pool and test would share {len(shared)} groups ({concerned.sum()} test images). In "
        f"{differing} of the {len(shared)} the two sides are of different series, and each series counts from the start, so equal "
        f"numbers say nothing of equal children there. No table of patients exists to prove it: a sensitivity analysis leaves "
        f"these images out."
    )
    return Finding(name, "note", len(shared), words)


def _size_finding(table: pd.DataFrame) -> Finding:
    sizes = table.groupby(["kind", "group_id"]).size()
    medians, largest, (kind, group) = sizes.groupby("kind").median(), int(sizes.max()), sizes.idxmax()
    usual = ", ".join(f"{name} {median:g}" for name, median in medians.items())
    verdict, meaning = "ok", "No group is so large that its key must be wrong."
    if largest > _GIANT_SHARE * len(table) and largest > _GIANT_TIMES * medians[kind]:
        verdict, meaning = "warning", "That is more than one patient's images: the group key is probably wrong."
    elif largest == 1:
        verdict = "note"
        meaning = "Either there is one image of each patient, or the patients are unknown and intervals too narrow."
    words = f"Median images in a group: {usual}; the largest, {group}, holds {largest}. {meaning}"
    return Finding("group_sizes", verdict, largest, words)


def find_duplicates(table: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Sets of images with equal grey values at equal size, one row an image; a colour file may so equal a grey one.

    Args:
        table: `Manifest.table`.
        split: from `split_manifest`; an image that it does not hold gets an empty `split`.
    Returns:
        `set` (from 1), `how`, `image_id, path, label, group_id, split`, sorted by set and `image_id`; `how` is `bytes`
        where all files of the set are the same to the byte, else `pixels`.
    """
    rows = table[table.pixel_hash.duplicated(keep=False)].sort_values("image_id")
    by_content = rows.groupby("pixel_hash", sort=False)
    rows = rows.assign(
        set=by_content.ngroup() + 1,
        how=np.where(by_content.sha256.transform("nunique") == 1, "bytes", "pixels"),
        split=rows.image_id.map(split.set_index("image_id").split).fillna(""),
    )
    columns = ["set", "how", "image_id", "path", "label", "group_id", "split"]
    return rows.sort_values(["set", "image_id"], ignore_index=True)[columns]


def duplicate_findings(duplicates: pd.DataFrame) -> list[Finding]:
    """Four findings from `find_duplicates`: all sets (note), those in several splits (error), of several groups
    (warning), with both labels (error); the value is the number of sets.
    """
    counts = duplicates.groupby("set")[["split", "group_id", "label"]].nunique()
    several = {column: duplicates[duplicates.set.isin(counts.index[counts[column] > 1])] for column in counts}
    to_the_byte = int((duplicates.drop_duplicates("set").how == "bytes").sum())
    again = len(duplicates) - len(counts)
    return [
        _duplicate_finding("duplicates", "note", duplicates, f"have equal pixels, {to_the_byte} set(s) to the byte",
                           f"{again} of these files show nothing new and count more than once",
                           "were found; copies that were resized or saved anew are not looked for"),
        _duplicate_finding("duplicates_across_splits", "error", several["split"], "stand in more than one split",
                           "The network is judged on images it was trained on; their groups belong into one split",
                           "stand in two splits: none is seen in training and again in a test"),
        _duplicate_finding("duplicates_across_groups", "warning", several["group_id"], "stand in more than one group",
                           "A group is then not a patient: validation is easier and intervals are narrower than they should be",
                           "stand in two groups: no copy speaks against a group being one patient"),
        _duplicate_finding("duplicates_with_two_labels", "error", several["label"], "carry both labels",
                           "One of the two labels must be wrong", "carry both labels: no label is refuted by a copy"),
    ]  # fmt: skip


def _duplicate_finding(name: str, verdict: str, rows: pd.DataFrame, what: str, meaning: str, none: str) -> Finding:
    sets = [" = ".join(ids.head(3)) for _, ids in rows.groupby("set").image_id]
    if not sets:
        return Finding(name, "ok", 0, f"No images with equal pixels {none}.")
    named = "; ".join(sets[:3]) + (f" and {len(sets) - 3} more set(s)" if len(sets) > 3 else "")
    return Finding(name, verdict, len(sets), f"{len(sets)} set(s) of {len(rows)} files {what}: {named}. {meaning}.")
