"""Where the radiographs come from: each source gives the same listing, and nothing is decoded yet.

`kaggle_folder` reads `<split>/<class>/` with classes NORMAL and PNEUMONIA, or Normal and Opacity as in the revised
split; `csv` a table of paths; `tfrecord` and `npz` are unpacked once into the cache and read from there; `synthetic` is
drawn first, in the first layout or, as another hospital's, in the second.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pneumolib.params import DataParams, in_root

SPLITS = ("train", "val", "test")
CLASSES = {"NORMAL": 0, "PNEUMONIA": 1}
LABEL_NAMES = {0: "normal", 1: "pneumonia"}
# Folder and label names in any case; the revised Kaggle split calls pneumonia Opacity.
CLASS_NAMES = {"normal": "NORMAL", "pneumonia": "PNEUMONIA", "opacity": "PNEUMONIA"}
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".dcm"}
# Not data: files that operating systems leave behind. The archive's nested copies (`chest_xray/`, `__MACOSX/`) lie
# beside the split folders, where nothing looks for images.
IGNORED = re.compile(r"\.DS_Store|\._.*|__MACOSX|Thumbs\.db|desktop\.ini")
PATTERNS = {
    "PNEUMONIA": re.compile(r"person(?P<number>\d+)_(?P<series>bacteria|virus)_\d+(?:_\d+)?"),
    "NORMAL": re.compile(r"(?P<series>IM|NORMAL2-IM)-(?P<number>\d+)-\d+(?:-\d+)?"),
}
EXAMPLES = {
    "PNEUMONIA": "person<N>_<bacteria|virus>_<M>.jpeg",
    "NORMAL": "IM-<N>-<k>[-<j>].jpeg or NORMAL2-IM-<N>-<k>.jpeg",
}


class ManifestError(ValueError):
    """Data that cannot be used; the message says what was looked for, where, and what to do."""


@dataclass(frozen=True)
class Listing:
    """What a source names, before any file is opened.

    Attributes:
        root: the folder that paths are relative to.
        images: dicts of `image_id, path, label, kind, group_id, source_split`, and `site` where the source names hospitals.
        strangers: dicts of `path, reason`: files that are no images by their name.
        needed: (split, class) pairs that must hold an image.
    """

    root: Path
    images: list[dict]
    strangers: list[dict]
    needed: list[tuple[str, str]]


def list_source(params: DataParams) -> Listing:
    """List the images that `params` names. Raises ManifestError for data that cannot be used."""
    # What only some sources need is imported where it is used, so that the others need not wait for it.
    if params.source == "csv":
        from pneumolib.data.csv_source import list_csv

        return list_csv(in_root(params.root), params.val_folder == "join")
    if params.source == "npz":
        from pneumolib.data.csv_source import list_csv
        from pneumolib.data.npz import unpack_npz

        return list_csv(unpack_npz(in_root(params.root), in_root(".cache/unpacked")), params.val_folder == "join")
    if params.source == "tfrecord":
        return _list_folder(_unpacked_records(params.root), params.val_folder == "join")
    if params.source == "synthetic":
        drawn = _drawn(params)
        if params.hospital == 2:
            from pneumolib.data.csv_source import list_csv

            return list_csv(drawn, params.val_folder == "join")
    return _list_folder(in_root(params.root), params.val_folder == "join")


def _drawn(params: DataParams) -> Path:
    """The folder of the drawn images; of the second hospital, their table."""
    from pneumolib.data.synthetic import draw_dataset, draw_second_hospital

    try:
        if params.hospital == 2:
            return draw_second_hospital(in_root(params.root), params.n_images, params.drawing_seed)
        return draw_dataset(in_root(params.root), params.n_images, params.drawing_seed)
    except FileExistsError as fault:
        raise ManifestError(
            f"data.root: {fault}. Name another folder for the drawn images; or, where it holds a drawing of an earlier "
            f"version, delete it"
        ) from None


def _unpacked_records(root: str) -> Path:
    """The TFRecord pairs of a folder or bucket as a folder of image files, made once in the cache."""
    from pneumolib.data.download import DownloadError, fetch_pairs
    from pneumolib.data.tfrecord import TFRecordError, unpack_pairs

    key = hashlib.sha256(root.encode()).hexdigest()[:16]
    try:
        source = fetch_pairs(root, in_root(f".cache/download/{key}")) if "://" in root else in_root(root)
        return unpack_pairs(source, in_root(f".cache/unpacked/tfrecord-{key}"))
    except (DownloadError, TFRecordError, OSError) as fault:
        raise ManifestError(f"data.root: {fault}") from None


def identify(class_name: str, stem: str) -> tuple[str, str] | None:
    """`(kind, group_id)` from a file name of the archive, or None when it follows no known pattern.

    The number restarts for each series, so the group key is (series, number): `person1_bacteria_2` belongs to
    `bacteria-1`, `IM-0115-0001` to `IM-115`. Keys that leave the series out report overlaps between train and test
    that are an artefact of the numbering.
    """
    match = PATTERNS[class_name].fullmatch(stem)
    if match is None:
        return None
    series = match["series"]
    return (series if class_name == "PNEUMONIA" else "normal"), f"{series}-{int(match['number'])}"


def _list_folder(root: Path, join_val: bool) -> Listing:
    """`<split>/<class>/<file>`; nothing deeper, so links that lead in circles lead nowhere. A val folder may be missing,
    as in the TFRecord edition, which counts its images among train.
    """
    splits = [split for split in SPLITS if split != "val" or (join_val and (root / "val").is_dir())]
    folders = _class_folders(root, splits)
    images, strangers, unknown = [], [], []
    for (split, class_name), folder in folders.items():
        for entry in _entries(folder):
            path = f"{split}/{folder.name}/{entry.name}"
            stem, suffix = os.path.splitext(entry.name)
            if IGNORED.fullmatch(entry.name):
                continue
            if fault := _no_image_by_name(entry, suffix):
                strangers.append({"path": path, "reason": fault})
            elif (identity := identify(class_name, stem)) is None:
                unknown.append(path)
            else:
                images.append({"image_id": f"{split}/{folder.name}/{stem}", "path": path, "label": CLASSES[class_name],
                               "kind": identity[0], "group_id": identity[1], "source_split": split})  # fmt: skip
    _refuse_unknown(unknown, root)
    _refuse_twins(images, root)
    return Listing(root, images, strangers, [(split, class_name) for split in splits for class_name in CLASSES])


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        return sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as fault:
        raise ManifestError(f"{folder}: cannot be listed: {fault.strerror}. Mend its permissions") from None


def _no_image_by_name(entry: os.DirEntry, suffix: str) -> str | None:
    try:
        if entry.is_dir():
            return "a folder inside a class folder"
    except OSError as fault:  # a link that leads back to itself
        return f"cannot be read: {fault.strerror}"
    return None if suffix.lower() in IMAGE_SUFFIXES else f"not an image file ({suffix or 'no'} ending)"


def _class_folders(root: Path, splits: list[str]) -> dict[tuple[str, str], Path]:
    """(split, NORMAL or PNEUMONIA) to the folder that holds it, whatever its spelling."""
    found: dict[tuple[str, str], Path] = {}
    for split in splits:
        inside = sorted((root / split).iterdir()) if (root / split).is_dir() else []
        for folder in inside:
            name = CLASS_NAMES.get(folder.name.lower())
            if name and folder.is_dir():
                if (split, name) in found:
                    raise ManifestError(
                        f"{root / split}: holds {found[split, name].name} and {folder.name}, both names for one class; "
                        f"keep one of them"
                    )
                found[split, name] = folder
    missing = [f"{s}/{name}" for s in splits for name in CLASSES if (s, name) not in found]
    if missing:
        raise ManifestError(_what_is_missing(root, splits, missing))
    return found


def _what_is_missing(root: Path, splits: list[str], missing: list[str]) -> str:
    if root.is_file():
        return f"data.root: {root} is a file; for a table of paths set data.source: csv, for a .npz data.source: npz"
    if not root.is_dir():
        return (
            f"data.root: {root} is not a folder. `make data` fetches the images; or unpack the Kaggle archive "
            f"`chest-xray-pneumonia` there, or name the folder that holds train/, val/ and test/: "
            f"make report DATA=<folder>"
        )
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:12]
    nested = next((p.parent for p in sorted(root.glob("*/train")) if p.parent.name != "__MACOSX"), None)
    hint = f" Did you mean {nested}?" if nested else ""
    if (root / "train/images.tfrec").is_file():
        hint = " It holds TFRecord files: set data.source: tfrecord."
    return (
        f"data.root: {root}: looked for {', '.join(f'{s}/{c}' for s in splits for c in CLASSES)} (Opacity may stand "
        f"for PNEUMONIA); missing: {', '.join(missing)}. Folders found there: {', '.join(found) or 'none'}.{hint}"
    )


def _refuse_unknown(unknown: list[str], root: Path) -> None:
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise ManifestError(
            f"{root}: {len(unknown)} file name(s) follow no known pattern, so their patient cannot be told and they "
            f"could leak between train and test: {shown}. Looked for {EXAMPLES['NORMAL']} in NORMAL and "
            f"{EXAMPLES['PNEUMONIA']} in PNEUMONIA. Rename the files or move them away; or name patients yourself in a "
            f"table (data.source: csv)."
        )


def _refuse_twins(images: list[dict], root: Path) -> None:
    ids = pd.Series([image["image_id"] for image in images], dtype=str)
    if (twins := sorted(ids[ids.duplicated()])) != []:
        raise ManifestError(f"{root}: files that differ in their ending only: {', '.join(twins[:10])}. Keep one each.")
