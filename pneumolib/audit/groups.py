"""Does a patient stand in two splits? Groups under three keys, of which the file names leave one in doubt.

The archive's names carry a number that restarts for each series (bacteria, virus, IM, NORMAL2-IM), so the key is
(series, number). Whoever takes the number alone finds children in both training and test. No table of patients was
ever published; so the test images concerned are listed, for a sensitivity analysis that leaves them out.
"""

import pandas as pd

from pneumolib.audit.findings import Finding

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


def shared_groups(table: pd.DataFrame, split: pd.DataFrame | None = None) -> pd.DataFrame:
    """Groups that stand in both the training pool (train and val) and test, one row a key.

    Args:
        table: `Manifest.table`.
        split: from `split_manifest`; without it the source's own folders decide.
    Returns:
        `key` in words, `groups` in all, `shared` by pool and test, `test_images` in the shared ones. Group ids that are
        not of the archive's form have no number to merge, and get one row only.
    """
    placed = _placed(table, split)
    rows = []
    for name in placed.columns.intersection(list(KEYS)):
        shared, concerned = _overlap(placed, name)
        key = KEYS[name] if WIDER[0] in placed else "group, as the source names it"
        entry = {"key": key, "groups": placed[name].nunique(), "shared": len(shared)}
        rows.append(entry | {"test_images": int(concerned.sum())})
    return pd.DataFrame(rows)


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


def group_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """Images per group: `kind, images, groups, median, largest, largest_group`, one row a kind."""
    sizes = table.groupby(["kind", "group_id"]).size().rename("images").reset_index()
    return pd.DataFrame(
        {
            "kind": kind,
            "images": int(rows.images.sum()),
            "groups": len(rows),
            "median": float(rows.images.median()),
            "largest": int(rows.images.max()),
            "largest_group": rows.group_id[rows.images.idxmax()],
        }
        for kind, rows in sizes.groupby("kind")
    )


def group_findings(table: pd.DataFrame, split: pd.DataFrame) -> list[Finding]:
    """`groups_across_splits` (error unless 0), `groups_<wider key>` (notes), `group_sizes`; see the module."""
    placed = _placed(table, split)
    spread = placed.groupby("series_and_number").part.nunique()
    crossing = sorted(spread.index[spread > 1])
    words = f"None of {len(spread)} groups stands in two of train, val and test: no patient crosses, as far as group ids tell."
    if crossing:
        words = (
            f"{len(crossing)} of {len(spread)} groups stand in more than one of train, val and test: "
            f"{', '.join(crossing[:5])}. The network is judged on patients it was trained on."
        )
    verdict = "error" if crossing else "ok"
    if len(spread) == len(placed):
        verdict = "note"
        words = f"Each of the {len(spread)} images is a group of its own: whether a patient crosses cannot be told."
    found = [Finding("groups_across_splits", verdict, len(crossing), words)]
    found += [_wider_finding(name, placed) for name in placed.columns.intersection(WIDER)]
    return [*found, _size_finding(group_sizes(table), len(table))]


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
    n_images = int(concerned.sum())
    if not (placed.part == "test").any():
        words = f"By {KEYS[name]}: not computable, because there are no test images."
        return Finding(f"groups_{name}", "note", None, words)
    if not shared:
        words = f"By {KEYS[name]}, no group is shared by the training pool and test: this key changes nothing."
        return Finding(f"groups_{name}", "ok", 0, words)
    words = (
        f"By {KEYS[name]}, the training pool and test would share {len(shared)} groups ({n_images} test images). In "
        f"{differing} of the {len(shared)} the two sides are of different series, and each series counts from the start, so equal numbers "
        f"say nothing of equal children there. No table of patients exists to prove it: a sensitivity analysis leaves "
        f"these images out."
    )
    return Finding(f"groups_{name}", "note", len(shared), words)


def _size_finding(sizes: pd.DataFrame, n_images: int) -> Finding:
    top = sizes.loc[sizes.largest.idxmax()]
    usual = ", ".join(f"{row.kind} {row.median:g}" for row in sizes.itertuples())
    words = f"Median images in a group: {usual}; the largest, {top.largest_group}, holds {top.largest}."
    verdict, meaning = "ok", "No group is so large that its key must be wrong."
    if top.largest > _GIANT_SHARE * n_images and top.largest > _GIANT_TIMES * top["median"]:
        verdict, meaning = "warning", "That is more than one child's images: the group key is probably wrong."
    elif top.largest == 1:
        verdict = "note"
        meaning = "Either there is one image of each child, or the patients are unknown and intervals too narrow."
    return Finding("group_sizes", verdict, int(top.largest), f"{words} {meaning}")
