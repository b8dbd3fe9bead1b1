"""Radiographs in folders, `<split>/<class>/<file>`: which are taken, and a reason for each file and folder that is not."""

import os
import re
from collections import Counter
from pathlib import Path

from pneumolib.data.layout import CLASS_NAMES, CLASSES, IGNORED, MARKER, SPLIT_NAMES, identify, is_image
from pneumolib.data.patients import plain_text
from pneumolib.data.tables import first_of
from pneumolib.errors import DataError
from pneumolib.params import DataParams
from pneumolib.text import printable

LEFT_OUT = "left_out"
_NAMES = {"NORMAL": "[NORMAL2-]IM-<N>-<k>[-<j>].jpeg", "PNEUMONIA": "person<N>_<bacteria|virus>_<M>.jpeg"}


def list_folder(root: Path, params: DataParams) -> tuple[list[dict], list[dict]]:
    """The images at `<split>/<class>/<file>` and what was not taken, as `sources.list_source` gives them.

    Nothing deeper is listed, so links that lead in circles lead nowhere. A val folder may be missing, as in the TFRecord edition, which counts its images among train.

    Args:
        root: the folder that holds the splits.
        params: `val_folder`; `classes`, which folder is which class beyond those that are known.
    Raises:
        DataError: no folder of a class, or a split, class or image that is named twice or not there.
        OSError: a folder that cannot be read.
    """
    found, seen = [], set()
    names = [_plain(name) for name in params.classes]
    if twice := [name for name in params.classes if names.count(_plain(name)) > 1]:
        raise DataError(f"{root}: data.classes names one folder twice: {', '.join(twice)}. Keep one of them")
    classes = {_plain(name): known.upper() for name, known in (CLASS_NAMES | params.classes).items()}
    for split, folder in (_splits(root, params, found) if root.is_dir() else {}).items():
        for entry in _entries(folder):
            if not os.path.isdir(entry):
                found.append(_left_out(root, entry, "beside the class folders"))
                continue
            seen.add(name := _plain(entry.name))
            if (known := classes.get(name)) in CLASSES:
                found += [_image(root, file, split, known) for file in _entries(entry)]
                continue
            lines = f"data.classes: {{{entry.name!r}: pneumonia}}, or normal, or {LEFT_OUT}"
            reason = "left out by data.classes" if known else f"no known class; study.yaml may say which: {lines}"
            found.append(_left_out(root, entry, reason))
    if not seen & classes.keys():
        raise DataError(f"{root}{_what_is_there(root)}")
    if missing := [name for name in params.classes if _plain(name) not in seen]:
        raise DataError(f"{root}: data.classes names {', '.join(map(repr, missing))}; no split holds such a folder")
    images = [item for item in found if "label" in item]
    if twins := [name for name, n in Counter(image["image_id"] for image in images).items() if n > 1]:
        raise DataError(f"{root}: files that differ in their ending only: {first_of(twins, 10)}. Keep one each.")
    return images, [item for item in found if "reason" in item]


def _plain(name: str) -> str:
    """A class folder's name without case, spaces and what stands for them."""
    return re.sub("[_-]", "", plain_text(name))


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MARKER and not IGNORED.fullmatch(path.name))


def _left_out(root: Path, entry: Path, reason: str) -> dict:
    """One entry for a file, or for a folder with all that is in it; of a second copy, as in Kaggle's archive, no file counts."""
    path = printable(entry.relative_to(root).as_posix())
    if not os.path.isdir(entry):
        return {"path": path, "reason": reason}
    shut: list[OSError] = []
    walk = os.walk(entry, onerror=shut.append)
    files = [Path(at, name) for at, _, names in walk for name in names if not IGNORED.fullmatch(name)]
    count = len(files)
    if shut:
        reason += f"; {len(shut)} folder(s) of it cannot be read"
    elif files and all(_same(file, entry.parent / file.relative_to(entry)) for file in files):
        reason, count = f"a second copy of the folder it is in, by names and sizes of its {count} files", 0
    return {"path": f"{path}/", "reason": reason, "files": count}


def _same(one: Path, other: Path) -> bool:
    return os.path.isfile(one) and os.path.isfile(other) and os.path.getsize(one) == os.path.getsize(other)


def _splits(root: Path, params: DataParams, found: list[dict]) -> dict[str, Path]:
    """The folder of each split; what is beside them is appended to `found`."""
    splits: dict[str, Path] = {}
    for entry in _entries(root):
        split = SPLIT_NAMES.get(plain_text(entry.name)) if os.path.isdir(entry) else None
        if split in splits:
            raise DataError(f"{root}: {splits[split].name!r} and {entry.name!r} are both {split}; move one away")
        if split is None:
            found.append(_left_out(root, entry, "beside train, val and test"))
        elif split == "val" and params.val_folder == "leave_out":
            found.append(_left_out(root, entry, "left out by data.val_folder"))
        else:
            splits[split] = entry
    return splits


def _image(root: Path, file: Path, split: str, class_name: str) -> dict:
    """An image of a class folder, or the reason why a file there is none."""
    path, identity = file.relative_to(root).as_posix(), identify(class_name, file.stem)
    if os.path.isdir(file):  # False too for a link that leads back to itself
        return _left_out(root, file, "a folder inside a class folder")
    if not is_image(file.name):
        return _left_out(root, file, f"not an image file ({printable(file.suffix) or 'no'} ending)")
    if identity is None:
        told = f"the name tells no patient; looked for {_NAMES[class_name]}. Rename it, or set data.source: csv"
        return _left_out(root, file, told)
    return {"image_id": path.removesuffix(file.suffix), "path": path, "label": CLASSES[class_name],
            "kind": identity[0], "group_id": identity[1], "source_split": split}  # fmt: skip


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
    found = ", ".join(sorted(printable(entry.name) for entry in root.iterdir())[:12]) or "nothing"
    return f": looked for train/NORMAL, train/PNEUMONIA (or Opacity) and the same in test; found {found}. Name their folder"
