"""Where the radiographs come from: each source gives the same listing, and nothing is decoded yet.

`kaggle_folder` reads `<split>/<class>/` with classes NORMAL and PNEUMONIA, or Normal and Opacity as in the revised
split; `csv` a table of paths, see `data.tables`; `tfrecord` and `npz` are unpacked once into the cache
and read from there; `synthetic` is drawn first, in the first layout or, as another hospital's, in the second. Files of a
table are of any kind that `data.decode` reads.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.decode import MEGABYTE
from pneumolib.data.folders import list_folder
from pneumolib.data.layout import BOUNDED, CLASSES, SPLITS, bar, build
from pneumolib.data.tables import list_table
from pneumolib.errors import DataError, PneumolibError, disk_words
from pneumolib.params import DataParams
from pneumolib.project import in_root
from pneumolib.provenance import text_digest
from pneumolib.text import printable

UNPACKED = ".cache/unpacked"
_MOST_TIMES = 100  # its own size, what a .npz file may become; radiographs become twice as large


def list_source(params: DataParams) -> tuple[Path, list[dict], list[dict]]:
    """What `params` names, before any file is opened.

    Returns:
        root: the folder that paths are relative to.
        images: dicts of `image_id, path, label, kind, group_id, source_split`, and `site` where the source names hospitals.
        strangers: dicts of `path, reason`: what was not taken; `files`, how many files it stands for, where it is a folder;
            0 for a second copy.
    Raises:
        DataError: data that cannot be used.
    """
    root = in_root(params.root)
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
        if params.source in ("csv", "npz") or (params.source == "synthetic" and params.hospital == 2):
            file = root / "manifest.csv" if root.is_dir() else root
            return file.parent, *list_table(file, params)
        return root, *list_folder(root, params)
    except (PneumolibError, OSError) as fault:
        if isinstance(fault, OSError) and (words := disk_words(fault)):  # no fault of the data
            raise PneumolibError(f"data.root: {words}") from None
        raise DataError(f"data.root: {fault}") from None


# --- arrays of small images


def unpack_npz(file: Path, cache_dir: Path) -> Path:
    """PneumoniaMNIST-style arrays as PNG files beside a `manifest.csv`, whose path is returned; done once for a file's
    size and time.

    Arrays: `<split>_images` uint8 (n, height, width) or (n, height, width, 1 or 3) and `<split>_labels` (n, 1) or (n,) with
    1 = pneumonia, for splits train, val and test (Yang et al., MedMNIST v2, Scientific Data 2023;10:41). The files
    name no patient, so every image counts as a group of its own. A line on stderr says so, because intervals come out
    too narrow and validation too easy.

    Raises:
        DataError: no such file, no arrays of this form, or labels other than 0 and 1.
    """
    if not file.is_file() or not zipfile.is_zipfile(file):
        raise DataError(f"{file} is no whole .npz file, such as pneumoniamnist.npz; for a table set data.source: csv")
    stat = file.stat()
    key = text_digest(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    print(f"{file.name} names no patients: each image counts as a group of its own", file=sys.stderr)
    folder = build(cache_dir / f"npz-{key}", {"npz": file.name}, lambda folder: _write_images(file, folder))
    return folder / "manifest.csv"


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays. What an array's head claims takes no memory: it is laid over the bytes that the archive holds."""
    arrays, name = {}, "list of members"
    heads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _MOST_TIMES * file.stat().st_size + MEGABYTE:
                raise ValueError(f"more than {_MOST_TIMES} times as large once unpacked")
            if any(member.compress_type not in BOUNDED for member in members):
                raise ValueError("compressed by another method than deflate")
            for name in archive.namelist():
                with archive.open(name) as member:
                    shape, by_columns, dtype = heads[np.lib.format.read_magic(member)](member)
                    if dtype.hasobject:
                        raise ValueError("Python objects; save it anew as numbers: images uint8, labels 0 or 1")
                    held, order = member.read(), "F" if by_columns else "C"
                    arrays[name.removesuffix(".npy")] = np.ndarray(shape, dtype, held, order=order)
    # Broad: what zipfile and numpy raise for broken archives and arrays has no common kind.
    except Exception as fault:
        raise DataError(f"{file}: no whole .npz file: {name}: {fault}") from fault
    return arrays


def _write_images(file: Path, folder: Path) -> None:
    """All images and their table, each split once its arrays are checked."""
    arrays = _read_arrays(file)
    wanted = {f"{split}_{what}" for split in SPLITS for what in ("images", "labels")}
    if extra := sorted(arrays.keys() - wanted):
        print(f"{file.name}: arrays that are not taken: {', '.join(map(printable, extra))}", file=sys.stderr)
    if missing := sorted(wanted - arrays.keys()):
        raise DataError(f"{file}: missing {', '.join(missing)}; found {', '.join(arrays) or 'none'}")
    rows, names = [], list(CLASSES)
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
        if images.shape[3:] == (1,):
            images = images[..., 0]
        usable = images.dtype == np.uint8 and images.ndim > 2 and images.shape[3:] in ((), (3,)) and images.size
        if not usable or len(labels) != len(images) or not np.isin(labels, (0, 1)).all():
            raise DataError(
                f"{file}: expected {split}_images uint8 (n, height, width) or (n, height, width, 1 or 3), received {images.dtype} "
                f"{images.shape}; and {split}_labels n values of 0 or 1, received {len(labels)}: {np.unique(labels)[:5]}"
            )
        for number, label in enumerate(bar(labels.astype(int), len(labels), f"unpacking {split}")):
            path = f"{split}/{names[label]}/{number:05d}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(folder / path)
            rows.append((path, label, f"{split}-{number:05d}", split))
    pd.DataFrame(rows, columns=["path", "label", "group_id", "split"]).to_csv(folder / "manifest.csv", index=False)
