"""Where the radiographs come from: each source gives the same listing, and nothing is decoded yet.

`kaggle_folder` reads `<split>/<class>/` with classes NORMAL and PNEUMONIA, or Normal and Opacity as in the revised
split; `csv` a table of paths, see `data.tables`; `tfrecord` and `npz` are unpacked once into the cache
and read from there; `synthetic` is drawn first, in the first layout or, as another hospital's, in the second. Files of a
table are of any kind that `data.decode` reads.
"""

import os
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.layout import CLASS_NAMES, CLASSES, IGNORED, SPLITS, bar, build, identify, is_image
from pneumolib.data.tables import first_of, list_table
from pneumolib.errors import DataError, PneumolibError
from pneumolib.params import DataParams
from pneumolib.project import in_root
from pneumolib.provenance import text_digest

UNPACKED = ".cache/unpacked"


@dataclass(frozen=True)
class Listing:
    """What a source names, before any file is opened.

    Attributes:
        root: the folder that paths are relative to.
        images: dicts of `image_id, path, label, kind, group_id, source_split`, and `site` where the source names hospitals.
        strangers: dicts of `path, reason`: files that are no images by their name.
    """

    root: Path
    images: list[dict]
    strangers: list[dict]


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
        if params.source in ("csv", "npz") or (params.source == "synthetic" and params.hospital == 2):
            file = root / "manifest.csv" if root.is_dir() else root
            return Listing(file.parent, *list_table(file, params))
        return _list_folder(root, join_val)
    except (PneumolibError, OSError) as fault:
        raise DataError(f"data.root: {fault}") from None


# --- folders


def _list_folder(root: Path, join_val: bool) -> Listing:
    """`<split>/<class>/<file>`; nothing deeper, so links that lead in circles lead nowhere. A val folder may be missing,
    as in the TFRecord edition, which counts its images among train.
    """
    splits = [split for split in SPLITS if split != "val" or (join_val and (root / "val").is_dir())]
    folders = [folder for split in splits for folder in sorted(root.glob(f"{split}/*/"))]
    folders = [folder for folder in folders if folder.name.lower() in CLASS_NAMES]
    if not folders:
        raise DataError(f"{root}{_what_is_there(root)}")
    images, strangers, unknown = [], [], []
    for folder in folders:
        split, class_name = folder.parent.name, CLASS_NAMES[folder.name.lower()]
        for file in sorted(file for file in folder.iterdir() if not IGNORED.fullmatch(file.name)):
            path = f"{split}/{folder.name}/{file.name}"
            if os.path.isdir(file):  # False too for a link that leads back to itself
                strangers.append({"path": path, "reason": "a folder inside a class folder"})
            elif not is_image(file.name):
                strangers.append({"path": path, "reason": f"not an image file ({file.suffix or 'no'} ending)"})
            elif (identity := identify(class_name, file.stem)) is None:
                unknown.append(path)
            else:
                images.append({"image_id": path.removesuffix(file.suffix), "path": path, "label": CLASSES[class_name],
                               "kind": identity[0], "group_id": identity[1], "source_split": split})  # fmt: skip
    if unknown:
        raise DataError(
            f"{root}: {len(unknown)} file name(s) follow no known pattern, so they tell no patient: {first_of(unknown, 10)}. "
            f"Looked for IM-<N>-<k>[-<j>].jpeg or NORMAL2-IM-<N>-<k>.jpeg in NORMAL and person<N>_<bacteria|virus>_<M>.jpeg "
            f"in PNEUMONIA. Rename the files or move them away; or name patients in a table (data.source: csv)."
        )
    if twins := [name for name, n in Counter(image["image_id"] for image in images).items() if n > 1]:
        raise DataError(f"{root}: files that differ in their ending only: {first_of(twins, 10)}. Keep one each.")
    return Listing(root, images, strangers)


def _what_is_there(root: Path) -> str:
    """Words for a root without class folders: what it is instead, and what to do."""
    if root.is_file():
        return " is a file; for a table of paths set data.source: csv, for a .npz data.source: npz"
    if not root.is_dir():
        return (
            " is not a folder. `make data` fetches the images; or unpack the Kaggle archive `chest-xray-pneumonia` "
            "there, or name the folder that holds train/, val/ and test/: make report STUDY=<study> DATA=<folder>"
        )
    if (root / "train/images.tfrec").is_file():
        return ": holds TFRecord files: set data.source: tfrecord"
    found = ", ".join(sorted(entry.name for entry in root.iterdir())[:12]) or "nothing"
    return f": looked for train/NORMAL, train/PNEUMONIA (or Opacity) and the same in test; found {found}. Name their folder"


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
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is no whole .npz file, such as pneumoniamnist.npz; for a table set data.source: csv")
    stat = file.stat()
    key = text_digest(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    print(f"{file.name} names no patients: each image counts as a group of its own", file=sys.stderr)
    build(cache_dir / f"npz-{key}", {"npz": file.name}, lambda folder: _write_images(file, folder))
    return cache_dir / f"npz-{key}/manifest.csv"


def _write_images(file: Path, folder: Path) -> None:
    """All images and their table, each split once its arrays are checked."""
    arrays, name = {}, ""
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in archive:
                arrays[name] = archive[name]
    # Broad: what numpy raises for broken arrays has no common kind.
    except Exception as fault:
        if "Object arrays" in str(fault):
            raise DataError(
                f"{file}: {name} holds Python objects; save it anew as numbers: images uint8, labels 0 or 1"
            ) from None
        raise DataError(f"{file}: no whole .npz file: {name}: {fault}") from fault
    if missing := sorted({f"{split}_{what}" for split in SPLITS for what in ("images", "labels")} - arrays.keys()):
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
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for number, label in enumerate(bar(labels.astype(int), len(labels), f"unpacking {split}")):
            path = f"{split}/{names[label]}/{number:05d}.png"
            Image.fromarray(images[number]).save(folder / path)
            rows.append((path, label, f"{split}-{number:05d}", split))
    pd.DataFrame(rows, columns=["path", "label", "group_id", "split"]).to_csv(folder / "manifest.csv", index=False)
