"""Radiographs in folders, `<split>/<class>/<file>`: which are taken, and a reason for each file and folder that is not."""

import os
import re
from collections import Counter
from pathlib import Path

from pneumolib.data.layout import (
    CLASS_NAMES,
    CLASSES,
    IGNORED,
    LABEL_NAMES,
    MARKER,
    SPLIT_NAMES,
    SPLITS,
    Listing,
    identify,
    is_image,
)
from pneumolib.data.patients import plain_text
from pneumolib.data.tables import first_of
from pneumolib.errors import DataError
from pneumolib.params import DataParams
from pneumolib.text import printable

LEFT_OUT = "left_out"


def list_folder(root: Path, params: DataParams) -> Listing:
    """List `<split>/<class>/<file>`; nothing deeper, so links that lead in circles lead nowhere.

    A val folder may be missing, as in the TFRecord edition, which counts its images among train.

    Args:
        root: the folder that holds the splits.
        params: `val_folder`; `classes`, which folder is which class beyond those that are known.
    Raises:
        DataError: no folder of a class, a split or class that is named twice or not there, or files that tell no patient.
    """
    if not root.is_dir():
        raise DataError(f"{root}{_what_is_there(root)}")
    images, strangers, unknown, seen = [], [], [], set()
    classes = {_plain(name): LABEL_NAMES[CLASSES[known]] for name, known in CLASS_NAMES.items()}
    classes |= {_plain(name): known for name, known in params.classes.items()}
    for split, folder in _splits(root, params, strangers).items():
        for entry in _entries(folder):
            if not os.path.isdir(entry):
                strangers.append(_left_out(root, entry, "beside the class folders"))
                continue
            seen.add(name := _plain(entry.name))
            if (known := classes.get(name)) in LABEL_NAMES.values():
                _list_class(root, entry, split, known.upper(), (images, strangers, unknown))
                continue
            lines = f"data.classes: {{{entry.name!r}: pneumonia}}, or normal, or {LEFT_OUT}"
            reason = "left out by data.classes" if known else f"no known class; study.yaml may say which: {lines}"
            strangers.append(_left_out(root, entry, reason))
    if not seen & classes.keys():
        raise DataError(f"{root}{_what_is_there(root)}")
    if missing := [name for name in params.classes if _plain(name) not in seen]:
        raise DataError(
            f"{root}: data.classes names {', '.join(map(repr, missing))}; no split holds a folder of this name"
        )
    if unknown:
        raise DataError(
            f"{root}: {len(unknown)} file name(s) follow no known pattern, so they tell no patient: {first_of(unknown, 10)}. "
            f"Looked for IM-<N>-<k>[-<j>].jpeg or NORMAL2-IM-<N>-<k>.jpeg in NORMAL and person<N>_<bacteria|virus>_<M>.jpeg "
            f"in PNEUMONIA. Rename the files or move them away, or leave a folder out by data.classes; or name patients in a "
            f"table (data.source: csv)."
        )
    if twins := [name for name, n in Counter(image["image_id"] for image in images).items() if n > 1]:
        raise DataError(f"{root}: files that differ in their ending only: {first_of(twins, 10)}. Keep one each.")
    return Listing(root, images, strangers)


def _plain(name: str) -> str:
    """A class folder's name without case, spaces and what stands for them."""
    return re.sub("[_-]", "", plain_text(name))


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MARKER and not IGNORED.fullmatch(path.name))


def _left_out(root: Path, entry: Path, reason: str) -> dict:
    """One entry for a file, or for a folder with all that is in it."""
    path = printable(entry.relative_to(root).as_posix())
    if not os.path.isdir(entry):
        return {"path": path, "reason": reason}
    shut: list[OSError] = []
    files = sum(len(files) for _, _, files in os.walk(entry, onerror=shut.append))
    unread = f"; {len(shut)} folder(s) of it cannot be read" if shut else ""
    return {"path": f"{path}/", "reason": reason + unread, "files": files}


def _splits(root: Path, params: DataParams, strangers: list[dict]) -> dict[str, Path]:
    """The folder of each split; what is beside them is appended to `strangers`."""
    found: dict[str, Path] = {}
    for entry in _entries(root):
        split = SPLIT_NAMES.get(plain_text(entry.name)) if os.path.isdir(entry) else None
        if split in found:
            raise DataError(f"{root}: {found[split].name!r} and {entry.name!r} are both {split}; move one of them away")
        if split is None:
            strangers.append(_left_out(root, entry, "beside train, val and test"))
        elif split == "val" and params.val_folder == "leave_out":
            strangers.append(_left_out(root, entry, "left out by data.val_folder"))
        else:
            found[split] = entry
    return {split: found[split] for split in SPLITS if split in found}


def _list_class(root: Path, folder: Path, split: str, class_name: str, lists: tuple[list, list, list]) -> None:
    """Append a class folder's files to the images, to what was not taken, or to the names that tell no patient."""
    images, strangers, unknown = lists
    for file in _entries(folder):
        path = file.relative_to(root).as_posix()
        if os.path.isdir(file):  # False too for a link that leads back to itself
            strangers.append(_left_out(root, file, "a folder inside a class folder"))
        elif not is_image(file.name):
            strangers.append(_left_out(root, file, f"not an image file ({printable(file.suffix) or 'no'} ending)"))
        elif (identity := identify(class_name, file.stem)) is None:
            unknown.append(printable(path))
        else:
            images.append({"image_id": path.removesuffix(file.suffix), "path": path, "label": CLASSES[class_name],
                           "kind": identity[0], "group_id": identity[1], "source_split": split})  # fmt: skip


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
