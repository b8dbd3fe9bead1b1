"""Where the radiographs come from: each source gives the same listing, and nothing is decoded yet.

`kaggle_folder` reads `<split>/<class>/` with classes NORMAL and PNEUMONIA, or Normal and Opacity as in the revised
split; `csv` a table of paths, `path,label,group_id,kind,split,site`; `tfrecord` and `npz` are unpacked once into the cache
and read from there; `synthetic` is drawn first, in the first layout or, as another hospital's, in the second. Files of a
table are of any kind that `data.decode` reads.
"""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.folders import list_folder
from pneumolib.data.layout import CLASS_NAMES, CLASSES, LABEL_NAMES, SPLITS, Listing, bar, build
from pneumolib.errors import DataError, PneumolibError, disk_words
from pneumolib.params import DataParams
from pneumolib.project import in_root
from pneumolib.provenance import text_digest

UNPACKED = ".cache/unpacked"
CSV_COLUMNS = ["path", "label", "group_id", "split"]  # needed; `kind` and `site`, the hospital, may be there too
KIND_LABELS = {"normal": 0, "pneumonia": 1, "bacteria": 1, "virus": 1}


def list_source(params: DataParams) -> Listing:
    """List the images that `params` names. Raises DataError for data that cannot be used."""
    root, join_val = in_root(params.root), params.val_folder == "join"
    try:
        # Imported where it is used, here and below: what draws or downloads need not be waited for by the other sources.
        if params.source == "synthetic":
            from pneumolib.data.synthetic import draw_dataset, draw_second_hospital

            draw = draw_second_hospital if params.hospital == 2 else draw_dataset
            root = draw(root, params.n_images, params.drawing_seed)
        if params.source == "tfrecord":
            from pneumolib.data.download import unpack_pairs

            source = params.root if "://" in params.root else str(root)
            root = unpack_pairs(source, in_root(f"{UNPACKED}/tfrecord-{text_digest(params.root)}"))
        if params.source == "npz":
            root = unpack_npz(root, in_root(UNPACKED))
        as_table = params.source in ("csv", "npz") or (params.source == "synthetic" and params.hospital == 2)
        return list_csv(root, join_val) if as_table else list_folder(root, params)
    except (PneumolibError, OSError) as fault:
        if isinstance(fault, OSError) and (words := disk_words(fault)):  # no fault of the data
            raise PneumolibError(f"data.root: {words}") from None
        raise DataError(f"data.root: {fault}") from None


def _first(names: list[str], most: int, between: str = ", ") -> str:
    return between.join(names[:most]) + (f"{between}and {len(names) - most} more" if len(names) > most else "")


# --- tables of paths


def list_csv(file: Path, join_val: bool) -> Listing:
    """List a table's images; paths are relative to its folder, or absolute. `kind` and `site` may be missing or empty.

    Further columns are kept as text. One that is named like a fact of the file, such as `mode`, gives way to that fact.

    Raises:
        DataError: no such table, or all its faults at once, by line.
    """
    file = file / "manifest.csv" if file.is_dir() else file
    table = _read_table(file)
    labels = table.label.str.lower().map({"0": 0, "1": 1} | {n: CLASSES[c] for n, c in CLASS_NAMES.items()})
    kinds = table.get("kind", pd.Series("", table.index))
    table = table.assign(kind=kinds.where(kinds != "", labels.map(LABEL_NAMES)), site=table.get("site", ""))
    _refuse_rows(file, table, labels)
    images = table.assign(image_id=table.path, label=labels.astype(int)).rename(columns={"split": "source_split"})
    images = images[join_val | (images.source_split != "val")]
    return Listing(file.parent, images.to_dict("records"), [])


def _read_table(file: Path) -> pd.DataFrame:
    """The table as text without blank lines; its index keeps the number of each line."""
    if not file.is_file():
        raise DataError(f"{file} is no file; csv wants a table of paths, or a folder with manifest.csv")
    as_text = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig", "index_col": False}
    try:
        table = pd.read_csv(file, **as_text, skip_blank_lines=False)
    except (ValueError, zipfile.BadZipFile) as fault:
        raise DataError(
            f"{file}: not a CSV table in UTF-8: {str(fault).strip()}. A spreadsheet program calls it `CSV UTF-8`; for a "
            f".npz set data.source: npz, a .zip goes to make data FROM="
        ) from None
    if missing := [c for c in CSV_COLUMNS if c not in table]:
        raise DataError(
            f"{file}: missing column(s) {', '.join(missing)}; found {', '.join(table)}. Needed, separated by commas: "
            f"{', '.join(CSV_COLUMNS)}; kind and site may be added. group_id is the patient"
        )
    table = table.apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise DataError(f"{file}: holds no rows")
    return table


def _refuse_rows(file: Path, table: pd.DataFrame, labels: pd.Series) -> None:
    """All faults of all rows at once, by line of the file."""
    sides = (table.split == "test").groupby(table.group_id).transform("nunique")
    faults = [
        (table.path == "", "path", "is empty"),
        (table.path.str.contains(r"[\0-\x1f]"), "path", "holds a control character"),
        (table.path.map(os.path.normpath).duplicated(), "path", "is in an earlier line too"),
        (labels.isna(), "label", "is none of 0, 1, normal, pneumonia, opacity"),
        (table.group_id == "", "group_id", "is empty; every image needs its patient"),
        (sides > 1, "group_id", "is in test and in training or validation too; a patient belongs to one of them"),
        (~table.split.isin(SPLITS), "split", "is none of train, val, test"),
        ((table.kind.str.lower().map(KIND_LABELS) - labels).abs() > 0, "kind", "contradicts the label"),
    ]
    lines = [f"line {row + 2}: {c} {table[c][row]!r} {words}" for bad, c, words in faults for row in table.index[bad]]
    if lines:
        raise DataError(f"{file}: {len(lines)} fault(s):\n  " + _first(lines, 20, "\n  "))


# --- arrays of small images


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
        raise DataError(f"{file} is no whole .npz file, such as pneumoniamnist.npz; for a table set data.source: csv")
    stat = file.stat()
    key = text_digest(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    print(f"{file.name} names no patients: each image counts as a group of its own", file=sys.stderr)
    build(cache_dir / f"npz-{key}", {"npz": file.name}, lambda folder: _write_images(file, folder))
    return cache_dir / f"npz-{key}/manifest.csv"


def _write_images(file: Path, folder: Path) -> None:
    """All images and their table, each split once its arrays are checked."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    # Broad: what numpy raises for broken arrays has no common kind.
    except Exception as fault:
        raise DataError(f"{file}: no whole .npz file: {fault}") from fault
    if missing := sorted({f"{split}_{what}" for split in SPLITS for what in ("images", "labels")} - arrays.keys()):
        raise DataError(f"{file}: missing {', '.join(missing)}; found {', '.join(arrays) or 'none'}")
    rows, names = [], list(CLASSES)
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
        usable = images.dtype == np.uint8 and images.ndim > 2 and images.shape[3:] in ((), (3,)) and images.size
        if not usable or len(labels) != len(images) or not np.isin(labels, (0, 1)).all():
            raise DataError(
                f"{file}: expected {split}_images uint8 (n, height, width) or (n, height, width, 3), received {images.dtype} "
                f"{images.shape}; and {split}_labels n values of 0 or 1, received {len(labels)}: {np.unique(labels)[:5]}"
            )
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for number, label in enumerate(bar(labels.astype(int), len(labels), f"unpacking {split}")):
            path = f"{split}/{names[label]}/{number:05d}.png"
            Image.fromarray(images[number]).save(folder / path)
            rows.append((path, label, f"{split}-{number:05d}", split))
    pd.DataFrame(rows, columns=CSV_COLUMNS).to_csv(folder / "manifest.csv", index=False)
