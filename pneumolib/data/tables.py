"""Tables of paths, `path,label,group_id,kind,split,site`, and arrays of small images that are unpacked to one.

The files of a table are of any kind that `data.decode` reads.
"""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.layout import CLASS_NAMES, CLASSES, KIND_LABELS, LABEL_NAMES, SPLITS, Listing, bar, build
from pneumolib.errors import DataError
from pneumolib.provenance import text_digest

CSV_COLUMNS = ["path", "label", "group_id", "split"]  # needed; `kind` and `site`, the hospital, may be there too


def list_csv(file: Path, join_val: bool) -> Listing:
    """List a table's images; paths are relative to its folder, or absolute. `kind` and `site` may be missing or empty.

    Raises:
        DataError: no such table, or all its faults at once, by line.
    """
    file = file / "manifest.csv" if file.is_dir() else file
    table = _read_table(file)
    labels = table.label.str.lower().map({"0": 0, "1": 1} | {n: CLASSES[c] for n, c in CLASS_NAMES.items()})
    kinds = table.get("kind", pd.Series("", table.index))
    table = table.assign(kind=kinds.where(kinds != "", labels.map(LABEL_NAMES)), site=table.get("site", ""))
    _refuse_rows(file, table, labels)
    _refuse_crossing(file, table)
    images = table.assign(image_id=table.path, label=labels.astype(int)).rename(columns={"split": "source_split"})
    images = images[join_val | (images.source_split != "val")]
    if images.empty:
        raise DataError(f"{file}: all its rows are val, which data.val_folder: leave_out leaves out")
    needed = sorted({(split, name) for split in set(images.source_split) for name in CLASSES})
    columns = ["image_id", "path", "label", "kind", "group_id", "source_split", "site"]
    return Listing(file.parent, images[columns].to_dict("records"), [], needed)


def _read_table(file: Path) -> pd.DataFrame:
    """The table as text without blank lines; its index keeps the number of each line."""
    if not file.is_file():
        raise DataError(f"data.root: {file} is no file; csv wants a table of paths, or a folder with manifest.csv")
    try:
        table = pd.read_csv(
            file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False, skip_blank_lines=False
        )
    except (ValueError, zipfile.BadZipFile) as fault:
        raise DataError(
            f"{file}: not a CSV table in UTF-8: {str(fault).strip()}. A spreadsheet program calls it `CSV UTF-8`; for a "
            f".npz set data.source: npz, a .zip goes to make data FROM="
        ) from None
    if len(table.columns) == 1 and any(mark in table.columns[0] for mark in ";\t"):
        raise DataError(f"{file}: its columns are not separated by commas: {table.columns[0]!r}. Save it with commas")
    if missing := [c for c in CSV_COLUMNS if c not in table]:
        why = " Without group_id nobody can tell which images are of one patient." if "group_id" in missing else ""
        raise DataError(
            f"{file}: missing column(s) {', '.join(missing)}; found {', '.join(table)}. Needed: "
            f"{', '.join(CSV_COLUMNS)}; kind and site may be added.{why}"
        )
    table = table.apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise DataError(f"{file}: holds no rows")
    return table


def _refuse_rows(file: Path, table: pd.DataFrame, labels: pd.Series) -> None:
    """All faults of all rows at once, by line of the file."""
    faults = [
        (table.path == "", "path", "is empty"),
        (table.path.str.contains(r"[\0-\x1f]"), "path", "holds a control character"),
        (table.path.map(os.path.normpath).duplicated(), "path", "is in an earlier line too"),
        (labels.isna(), "label", "is none of 0, 1, normal, pneumonia, opacity"),
        (table.group_id == "", "group_id", "is empty; every image needs its patient"),
        (~table.split.isin(SPLITS), "split", "is none of train, val, test"),
        ((table.kind.str.lower().map(KIND_LABELS) - labels).abs() > 0, "kind", "contradicts the label"),
    ]
    lines = [
        f"line {row + 2}: {column} {table[column][row]!r} {words}"
        for bad, column, words in faults
        for row in table.index[bad]
    ]
    if lines:
        more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise DataError(f"{file}: {len(lines)} fault(s):\n  " + "\n  ".join(lines[:20]) + more)


def _refuse_crossing(file: Path, table: pd.DataFrame) -> None:
    """A patient in test and elsewhere, by the first line of each side."""
    sides = table.assign(line=table.index + 2, side=np.where(table.split == "test", "test", "other"))
    lines = sides.pivot_table("line", "group_id", "side", "min")
    both = lines.reindex(columns=["other", "test"]).dropna().astype(int)
    if len(both):
        words = [f"{row.Index}: line {row.other} and, in test, line {row.test}" for row in both.head(20).itertuples()]
        raise DataError(
            f"{file}: {len(both)} group(s) are in test and in training or validation, so a network would be tested on "
            f"patients it knows:\n  " + "\n  ".join(words)
        )


def unpack_npz(file: Path, cache_dir: Path) -> Path:
    """PneumoniaMNIST-style arrays as PNG files beside a `manifest.csv`, whose path is returned; done once for a file's
    size and time.

    Arrays: `<split>_images` uint8 (n, height, width) or (n, height, width, 3) and `<split>_labels` (n, 1) or (n,) with
    1 = pneumonia, for splits train, val and test (Yang et al., MedMNIST v2, Scientific Data 2023;10:41). The files
    name no patient, so every image counts as a group of its own. A line on stderr says so, because intervals come out
    too narrow and validation too easy.

    Raises:
        DataError: no such file, no arrays of this form, or labels other than 0 and 1.
    """
    if not zipfile.is_zipfile(file):
        raise DataError(
            f"{file} is no whole .npz file, such as pneumoniamnist.npz; a table of paths is data.source: csv"
        )
    stat = file.stat()
    key = text_digest(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    print(f"{file.name} names no patients: each image counts as a group of its own", file=sys.stderr)
    build(cache_dir / f"npz-{key}", {"npz": file.name}, lambda folder: _write_images(file, folder))
    return cache_dir / f"npz-{key}/manifest.csv"


def _write_images(file: Path, folder: Path) -> None:
    """All images and their table, each split once its arrays are checked."""
    rows, names = [], list(CLASSES)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as fault:
        raise DataError(f"{file}: not a whole .npz file: {fault}") from None
    if missing := sorted({f"{split}_{what}" for split in SPLITS for what in ("images", "labels")} - arrays.keys()):
        raise DataError(f"{file}: missing {', '.join(missing)}; found {', '.join(arrays) or 'none'}")
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
        if images.dtype != np.uint8 or images.ndim < 3 or images.shape[3:] not in ((), (3,)) or not images.size:
            raise DataError(
                f"{file}: {split}_images: expected uint8 (n, height, width) or (n, height, width, 3), "
                f"received {images.dtype} {images.shape}"
            )
        if len(labels) != len(images) or not np.isin(labels, (0, 1)).all():
            raise DataError(
                f"{file}: {split}_labels: expected {len(images)} values of 0 or 1, received {len(labels)} "
                f"with values {sorted(set(labels.tolist()))[:5]}"
            )
        for number, pixels in enumerate(bar(images, len(images), f"unpacking {split}")):
            label = int(labels[number])
            path = f"{split}/{names[label]}/{number:05d}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / path)
            rows.append((path, label, f"{split}-{number:05d}", split))
    pd.DataFrame(rows, columns=CSV_COLUMNS).to_csv(folder / "manifest.csv", index=False)
