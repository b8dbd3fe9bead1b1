"""Which images stand there twice? Equal bytes, and equal pixels under other bytes.

Only exact equality is looked for: on this archive, perceptual hashes at a distance of 4 paired normal with pneumonia.
"""

import pandas as pd

from pneumolib.audit.findings import Finding

COLUMNS = ["set", "how", "image_id", "path", "label", "group_id", "split"]


def find_duplicates(table: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """Sets of images with equal grey values at equal size, one row an image; a colour file may so equal a grey one.

    Args:
        table: `Manifest.table`.
        split: from `split_manifest`; an image that it does not hold gets an empty `split`.
    Returns:
        `set` (from 1), `how`, `image_id, path, label, group_id, split`, sorted by set and `image_id`; `how` is `bytes`
        where all files of the set are the same to the byte, else `pixels`.
    """
    rows = table.sort_values("image_id")
    rows = rows[rows.pixel_hash.duplicated(keep=False)]
    by_content = rows.groupby("pixel_hash", sort=False)
    part_of = dict(zip(split.image_id, split.split, strict=True))
    rows = rows.assign(
        set=by_content.ngroup() + 1,
        how=by_content.sha256.transform("nunique").map(lambda n: "bytes" if n == 1 else "pixels"),
        split=[part_of.get(image_id, "") for image_id in rows.image_id],
    )
    return rows.sort_values(["set", "image_id"], ignore_index=True)[COLUMNS]


def duplicate_findings(duplicates: pd.DataFrame) -> list[Finding]:
    """Four findings from `find_duplicates`: all sets (note), those in several splits (error), of several groups
    (warning), with both labels (error); the value is the number of sets.
    """
    counts = duplicates.groupby("set")[["split", "group_id", "label"]].nunique()
    several = {column: duplicates[duplicates.set.isin(counts.index[counts[column] > 1])] for column in counts}
    to_the_byte = int((duplicates.drop_duplicates("set").how == "bytes").sum())
    again = len(duplicates) - len(counts)
    return [
        _finding("duplicates", "note", duplicates, f"have equal pixels, {to_the_byte} set(s) to the byte",
                 f"{again} of these files show nothing new and count more than once"),
        _finding("duplicates_across_splits", "error", several["split"], "stand in more than one split",
                 "The network is judged on images it was trained on; their groups belong into one split"),
        _finding("duplicates_across_groups", "warning", several["group_id"], "stand in more than one group",
                 "A group is then not a child: validation is easier and intervals are narrower than they should be"),
        _finding("duplicates_with_two_labels", "error", several["label"], "carry both labels",
                 "One of the two labels must be wrong"),
    ]  # fmt: skip


def _finding(name: str, verdict: str, rows: pd.DataFrame, what: str, meaning: str) -> Finding:
    n_sets = rows.set.nunique()
    if not n_sets:
        return Finding(name, "ok", 0, f"No images with equal pixels {_IN_NONE[name]}.")
    names = [" = ".join(ids.head(3)) for _, ids in list(rows.groupby("set").image_id)[:3]]
    more = f" and {n_sets - 3} more set(s)" if n_sets > 3 else ""
    return Finding(
        name, verdict, n_sets, f"{n_sets} set(s) of {len(rows)} files {what}: {'; '.join(names)}{more}. {meaning}."
    )


_IN_NONE = {
    "duplicates": "were found; copies that were resized or saved anew are not looked for",
    "duplicates_across_splits": "stand in two splits: none is seen in training and again in a test",
    "duplicates_across_groups": "stand in two groups: no copy speaks against a group being one child",
    "duplicates_with_two_labels": "carry both labels: no label is refuted by a copy",
}
