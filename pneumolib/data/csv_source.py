"""A table of paths as a source: `path,label,group_id,kind,split,site`, files of any kind that `decoding` reads."""

import os
import zipfile
from pathlib import Path

import pandas as pd

from pneumolib.data.sources import CLASS_NAMES, CLASSES, LABEL_NAMES, SPLITS, Listing, ManifestError

KIND_LABELS = {"normal": 0, "pneumonia": 1, "bacteria": 1, "virus": 1}
CSV_COLUMNS = ["path", "label", "group_id", "split"]  # needed; `kind` and `site`, the hospital, may be there too


def list_csv(file: Path, join_val: bool) -> Listing:
    """List a table's images; paths are relative to its folder, or absolute. `kind` and `site` may be missing or empty.

    Raises:
        ManifestError: no such table, or all its faults at once, by line.
    """
    file = file / "manifest.csv" if file.is_dir() else file
    table = _read_table(file)
    labels = table.label.str.lower().map({"0": 0, "1": 1} | {n: CLASSES[c] for n, c in CLASS_NAMES.items()})
    kind = table.kind if "kind" in table else pd.Series("", index=table.index)
    kind = kind.where(kind != "", labels.map(LABEL_NAMES))
    _refuse_rows(file, table, labels, kind)
    images = pd.DataFrame({"image_id": table.path, "path": table.path, "label": labels.astype(int), "kind": kind,
                           "group_id": table.group_id, "source_split": table.split,
                           "site": table.site if "site" in table else ""})  # fmt: skip
    images = images[join_val | (images.source_split != "val")]
    if images.empty:
        raise ManifestError(f"{file}: all its rows are val, which data.val_folder: leave_out leaves out")
    needed = sorted({(s, name) for s in set(images.source_split) for name in CLASSES})
    return Listing(file.parent, images.to_dict("records"), [], needed)


def _read_table(file: Path) -> pd.DataFrame:
    """The table as text without blank lines; its index keeps the number of each line."""
    if not file.is_file():
        raise ManifestError(
            f"data.root: {file} is no file; data.source: csv wants a table of paths, or a folder with manifest.csv"
        )
    if zipfile.is_zipfile(file):
        raise ManifestError(
            f"data.root: {file} is no table; for a .npz set data.source: npz, a .zip goes to make data FROM="
        )
    try:
        table = pd.read_csv(
            file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False, skip_blank_lines=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as fault:
        raise ManifestError(
            f"{file}: not a CSV table in UTF-8: {str(fault).strip()}. A spreadsheet program calls it `CSV UTF-8`"
        ) from None
    if len(table.columns) == 1 and any(mark in table.columns[0] for mark in ";\t"):
        raise ManifestError(
            f"{file}: its columns are not separated by commas: {table.columns[0]!r}. Save it with commas"
        )
    if missing := [c for c in CSV_COLUMNS if c not in table]:
        why = " Without group_id nobody can tell which images are of one patient." if "group_id" in missing else ""
        raise ManifestError(
            f"{file}: missing column(s) {', '.join(missing)}; found {', '.join(table)}. Needed: "
            f"{', '.join(CSV_COLUMNS)}; kind and site may be added.{why}"
        )
    table = table.apply(lambda column: column.str.strip())
    return table[(table != "").any(axis=1)]


def _refuse_rows(file: Path, table: pd.DataFrame, labels: pd.Series, kind: pd.Series) -> None:
    """All faults of all rows at once, by line of the file."""
    faults = [
        (table.path == "", "path", "is empty"),
        (table.path.str.contains(r"[\0-\x1f]"), "path", "holds a control character"),
        (table.path.map(os.path.normpath).duplicated(), "path", "stands in an earlier line too"),
        (labels.isna(), "label", "is none of 0, 1, normal, pneumonia, opacity"),
        (table.group_id == "", "group_id", "is empty; every image needs its patient"),
        (~table.split.isin(SPLITS), "split", "is none of train, val, test"),
        ((kind.str.lower().map(KIND_LABELS) - labels).abs() > 0, "kind", "contradicts the label"),
    ]
    table = table.assign(kind=kind)
    lines = [
        f"line {row + 2}: {column} {table[column][row]!r} {words}"
        for bad, column, words in faults
        for row in table.index[bad]
    ]
    if lines:
        more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise ManifestError(f"{file}: {len(lines)} fault(s):\n  " + "\n  ".join(lines[:20]) + more)
    if table.empty:
        raise ManifestError(f"{file}: holds no rows")
    _refuse_crossing(file, table)


def _refuse_crossing(file: Path, table: pd.DataFrame) -> None:
    """A patient in test and elsewhere, by the first line of each side."""
    lines = pd.Series(table.index + 2, index=table.index)
    in_test = table.split == "test"
    firsts = {
        name: lines[side].groupby(table.group_id[side]).min() for name, side in (("test", in_test), ("other", ~in_test))
    }
    sides = pd.DataFrame(firsts).dropna().astype(int)
    if len(sides):
        words = [f"{row.Index}: line {row.other} and, in test, line {row.test}" for row in sides.head(20).itertuples()]
        raise ManifestError(
            f"{file}: {len(sides)} group(s) stand in test and in training or validation, so a network would be tested on "
            f"patients it knows:\n  " + "\n  ".join(words)
        )
