"""Names of splits, classes and image files, and folders that are whole or absent. All sources build on this module.

Contract: images are at `<split>/<class>/<name>`, class NORMAL or PNEUMONIA. A folder that was made here holds
`pneumolib-data.json`, written last, with the recipe and the number of images. A recipe may name a `table` of the images
in the same folder.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from filelock import FileLock
from tqdm import tqdm

from pneumolib.errors import DataError

SPLITS = ("train", "val", "test")
# As folders and tables call them, in any case.
SPLIT_NAMES = {"training": "train", "testing": "test", "valid": "val", "validation": "val", "dev": "val"}
SPLIT_NAMES |= {split: split for split in SPLITS}
CLASSES = {"NORMAL": 0, "PNEUMONIA": 1}
LABEL_NAMES = {0: "normal", 1: "pneumonia"}
# Folder and label names in any case; the revised Kaggle split calls pneumonia Opacity.
CLASS_NAMES = {"normal": "NORMAL", "pneumonia": "PNEUMONIA", "opacity": "PNEUMONIA"}
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".dcm"}
# Not data: files that operating systems leave behind.
IGNORED = re.compile(r"\.DS_Store|\._.*|__MACOSX|Thumbs\.db|desktop\.ini")
PATTERNS = {
    "PNEUMONIA": re.compile(r"person(?P<number>\d+)_(?P<series>bacteria|virus)_\d+(?:_\d+)?"),
    "NORMAL": re.compile(r"(?P<series>IM|NORMAL2-IM)-(?P<number>\d+)-\d+(?:-\d+)?"),
}
MARKER = "pneumolib-data.json"
MADE_BY = "pneumolib.data.archive"  # stays as the first version wrote it, so that its folders are still known
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python unpacks other methods without a bound on memory
DRAWN = "drawn"  # the recipe's key for drawn images


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


def is_image(name: str) -> bool:
    """Whether a file's name is an image's; `._x.jpeg`, as macOS leaves them, is none."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not IGNORED.fullmatch(name)


def safe_parts(path: str) -> list[str]:
    """`path` cut at / and \\. Raises DataError where it could lead out of the folder it is put in."""
    parts = re.split(r"[/\\]", path)
    if not parts[0] or any(part == ".." or re.search(r"[\0-\x1f\x7f:]", part) for part in parts):
        raise DataError(f"{path!r}: unsafe name; allowed are relative paths without .., colons and control characters")
    return parts


def place_of(path: str, part: str = "") -> tuple[tuple[str, ...], str] | None:
    """The folder that a path has the archive's layout in, and `<split>/<class>/<name>` there; None for any other path.

    `part` is the split where the path names none. Raises DataError as `safe_parts` does.
    """
    *root, split, folder, file = ["", "", *safe_parts(path)]
    split = SPLIT_NAMES.get(split.lower(), part)
    if not split or folder.lower() not in CLASS_NAMES or not is_image(file):
        return None
    return tuple(root), f"{split}/{CLASS_NAMES[folder.lower()]}/{file}"


def count_images(folder: Path) -> Counter[str]:
    """Images at `<split>/<class>`, by that key."""
    return Counter("/".join(path.parts[-3:-1]) for path in folder.glob("*/*/*") if is_image(path.name))


def is_drawn(folder: Path) -> bool:
    """Whether the images were drawn by `data.synthetic`; the mark goes where the folder is copied."""
    return DRAWN in _read_marker(folder)["recipe"]


def recipe_of(target: Path) -> dict | None:
    """What a whole folder made by `build` was made from; None for any other."""
    marker = _read_marker(target)
    whole = count_images(target).total() == marker["n_images"] and (target / marker["recipe"].get("table", "")).exists()
    return marker["recipe"] if whole else None


def build(target: Path, recipe: dict, fill: Callable[[Path], None]) -> Path:
    """Have `fill` write images into a folder beside `target`, move it there when it is whole, and return `target`.

    A target that was made by the same recipe is left as it is, one by another is replaced. Behind a lock, so that two
    processes wait for each other; what an earlier one left when it was killed is deleted.

    Raises:
        DataError: `target` holds what was not made here; nothing is changed.
        whatever `fill` raises; `target` is then as it was.
    """
    home = target.resolve()
    if recipe_of(home) == recipe:  # asked before the lock too, so that a read-only folder serves
        return target
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=home.parent):  # a lock that cannot be made would be waited for
        pass
    fresh, old = home.with_name(f".{home.name}.filling"), home.with_name(f".{home.name}.old")
    with FileLock(home.with_name(f".{home.name}.lock")):
        if recipe_of(home) == recipe:
            return target
        _refuse_foreign(home)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir()
            fill(fresh)
            marker = {"made_by": MADE_BY, "n_images": count_images(fresh).total(), "recipe": recipe}
            (fresh / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(old, ignore_errors=True)
            if home.exists():  # a folder that is not empty cannot be replaced in one step
                os.replace(home, old)
            os.replace(fresh, home)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def _read_marker(folder: Path) -> dict:
    """What `build` wrote last; where it wrote nothing, a marker that fits no folder."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = None
    return found if isinstance(found, dict) and found.get("made_by") == MADE_BY else {"n_images": -1, "recipe": {}}


def _refuse_foreign(home: Path) -> None:
    """Raise DataError where `home` holds anything that `build` would not have written, or more of it."""
    marker, n_images = _read_marker(home), count_images(home).total()
    ours = {home / name for name in (MARKER, marker["recipe"].get("table", MARKER))} if marker["recipe"] else set()
    inside = home.rglob("*") if home.is_dir() else [home] * home.exists()
    files = [path for path in inside if not (path.is_dir() or IGNORED.fullmatch(path.name) or path in ours)]
    strange = [p for p in files if not (is_image(p.name) and p.parents[1].name in SPLITS and p.parents[2] == home)]
    if strange or n_images > max(0, marker["n_images"]):
        what = f"such as {min(strange).name}" if strange else f"more than {marker['n_images']} images"
        raise DataError(f"{home} holds files that were not made here, {what}; nothing was changed. Name another folder")


def bar(items: Iterable, total: int | None, what: str, unit: str = "image") -> Iterable:
    """`items` with a plain tqdm bar on stderr (not `tqdm.auto`, whose widgets load from a network).

    A terminal sees it move; a log or a page, which would keep every state, only every ten seconds.
    """
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(items, total=total, desc=what, unit=unit, mininterval=interval, disable=total == 0)
