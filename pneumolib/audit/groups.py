"""Leakage between splits: does a patient or an image appear in two of them? Groups under three keys, and duplicates.

The archive's names carry a number that restarts for each series (bacteria, virus, IM, NORMAL2-IM), so the key is
(series, number). Whoever takes the number alone finds children in both training and test. No table of patients was
ever published; so the test images concerned are listed, for a sensitivity analysis that leaves them out.

Of duplicates only exact equality is looked for, of bytes or of pixels: on this archive, perceptual hashes at a distance of 4
paired normal with pneumonia.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from pneumolib.data.patients import one_spelling

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
        value: what was counted or computed, NaN where that was not possible.
        passage: of `reporting/template/prose/findings.md.j2`, which says the finding in plain words.
        facts: what the passage asks for besides.
        low, high: ends of the interval, NaN where there is none.
    """

    name: str
    verdict: Literal["ok", "note", "warning", "error"]
    value: float
    passage: str
    facts: dict[str, Any]
    low: float = np.nan
    high: float = np.nan


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
    crossing = sorted(spread.index[spread > 1])
    verdict = "note" if len(spread) == len(placed) else "error" if crossing else "ok"
    facts = {"groups": len(spread), "crossing": crossing[:5]}
    found = [Finding("groups_across_splits", verdict, len(crossing), "groups_across_splits", facts)]
    found += [_wider_finding(name, placed) for name in placed.columns.intersection(WIDER)]
    return [*found, _size_finding(table)]


def _placed(table: pd.DataFrame, split: pd.DataFrame | None) -> pd.DataFrame:
    """`image_id, part` and the group under each key that applies; without images that the split leaves out."""
    part = table.source_split if split is None else table.image_id.map(split.set_index("image_id").split)
    placed = pd.DataFrame({"image_id": table.image_id, "part": part, "series_and_number": one_spelling(table.group_id)})
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
    facts = {"key": KEYS[name], "test_images": int(concerned.sum()), "differing": differing}
    return Finding(f"groups_{name}", "note" if shared else "ok", len(shared), "wider_key", facts)


def _size_finding(table: pd.DataFrame) -> Finding:
    sizes = table.groupby(["kind", "group_id"]).size()
    medians, largest, (kind, group) = sizes.groupby("kind").median(), int(sizes.max()), sizes.idxmax()
    is_giant = largest > _GIANT_SHARE * len(table) and largest > _GIANT_TIMES * medians[kind]
    verdict = "warning" if is_giant else "note" if largest == 1 else "ok"
    return Finding("group_sizes", verdict, largest, "group_sizes", {"medians": medians.to_dict(), "group": group})


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
    sets, findings = duplicates.groupby("set"), []
    for name, verdict, column in (
        ("duplicates", "note", "image_id"), ("duplicates_across_splits", "error", "split"),
        ("duplicates_across_groups", "warning", "group_id"), ("duplicates_with_two_labels", "error", "label"),
    ):  # fmt: skip
        rows = duplicates[sets[column].transform("nunique") > 1]
        equal = [" = ".join(ids.head(3)) for _, ids in rows.groupby("set").image_id]
        to_the_byte = int((rows.drop_duplicates("set").how == "bytes").sum())
        facts = {"sets": equal[:3], "files": len(rows), "to_the_byte": to_the_byte}
        findings.append(Finding(name, verdict if equal else "ok", len(equal), "duplicates", facts))
    return findings
