"""Which image files a person means by files, folders and patterns."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from pneumolib.data.layout import IGNORED, IMAGE_SUFFIXES

_DICOM_AT, _DICOM = 128, b"DICM"


def image_files(named: list[str]) -> Iterator[tuple[str, Path]]:
    """A name to show and a path for each image, in the order named; a folder's by name, with all folders in it.

    Of a folder or a pattern, files that are no images by their ending are passed over; DICOM files often have none and
    are known by their content. A file that is named itself is always there, whatever it is, and so is a name that leads to
    nothing: reading it will say what is wrong.
    """
    for name in named:
        path = Path(name)
        if path.is_dir():
            yield from ((str(file), file) for file in _of_folder(path))
        elif glob.has_magic(name) and not path.exists():
            found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
            images = [file for file in found if file.is_file() and _is_image(file)]
            yield from ((str(file), file) for file in images or [path])
        else:
            yield name, path


def _of_folder(folder: Path) -> Iterator[Path]:
    """Empty folders give themselves, so that reading them says so."""
    found = False
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not IGNORED.fullmatch(name))
        for name in sorted(files):
            if _is_image(file := Path(place, name)):
                found = True
                yield file
    if not found:
        yield folder


def _is_image(file: Path) -> bool:
    if IGNORED.fullmatch(file.name):
        return False
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with file.open("rb") as opened:
            opened.seek(_DICOM_AT)
            return opened.read(len(_DICOM)) == _DICOM
    except OSError:  # a named pipe, say, or a file of another person: no image that could be read
        return False
