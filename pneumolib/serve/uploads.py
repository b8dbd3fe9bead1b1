"""What a page takes from a visitor: limits before decoding, and names that give no patient away.

Hospitals' exports often hold the patient's name in the file's name, and DICOM holds it inside. So a name is shown only for a
file that is JPEG or PNG by its content; any other is called by its place, and nothing that was read from a DICOM file gets
into a message.
"""

import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from pneumolib.data.decode import LIMITS, MEGABYTE, form_of, opened
from pneumolib.data.drawing import draw_radiograph
from pneumolib.errors import ImageFileError
from pneumolib.params import DataParams

MOST_FILES = 50  # in one visit
MOST_TOGETHER = 512 * MEGABYTE  # all files of one visit
# Drawn images to try a page with: what the button says, and the kind of `data.drawing`.
SAMPLES = {"normal": "NORMAL2-IM", "bacterial pneumonia": "bacteria", "viral pneumonia": "virus"}
SAMPLE_SEED = 20  # the demo draws its own with another one, so that no sample was trained on


@dataclass(frozen=True)
class Taken:
    """A file of a visitor.

    Attributes:
        name: to be shown; none of a DICOM file's own.
        raw: its bytes; empty where it was refused.
        error: why it was refused.
        dicom: whether messages about it must be kept free of what it holds.
    """

    name: str
    raw: bytes = b""
    error: str | None = None
    dicom: bool = False


def take_in(
    files: Iterable[tuple[str, bytes]], before: Sequence[Taken] = (), limits: DataParams = LIMITS
) -> list[Taken]:
    """Files, by their own names, as a page may show them; one that is refused does not stop the others.

    Args:
        before: what this visitor has brought already, which counts for the limits and the numbers in names.
        limits: of one file, as in the network's training.
    """
    taken = list(before)
    for name, raw in files:
        shown, error = shown_name(name, raw, taken), _refusal(raw, taken, limits)
        taken.append(Taken(shown, b"" if error else raw, error, form_of(raw) == "DICOM"))
    return taken[len(before) :]


def _refusal(raw: bytes, taken: Sequence[Taken], limits: DataParams) -> str | None:
    """Why a file is not decoded at all; None where it may be tried."""
    kept = [len(one.raw) for one in taken if one.raw]
    if len(kept) >= MOST_FILES:
        return f"more than the {MOST_FILES} images that fit on a page; remove those first, or use `pneumolib predict`"
    if sum(kept) + len(raw) > MOST_TOGETHER:
        return f"all files together are above {MOST_TOGETHER // MEGABYTE} MB; remove the others first"
    try:
        with opened(raw, limits):
            return None
    except ImageFileError as fault:
        return str(fault)


def shown_name(name: str, raw: bytes, taken: Sequence[Taken]) -> str:
    """How a file is called on the page, `DICOM 2`, `File 5` or its own name; no two alike."""
    form = form_of(raw)
    if form == "DICOM":
        own = f"DICOM {1 + sum(one.dicom for one in taken)}"
    elif form is None:
        own = f"File {len(taken) + 1}"
    else:
        own = "".join(letter for letter in name if letter.isprintable()).strip() or f"{form} {len(taken) + 1}"
    names = {one.name for one in taken}
    numbered = itertools.chain([own], (f"{own} ({number})" for number in itertools.count(2)))
    return next(name for name in numbered if name not in names)


def safe_error(taken: Taken, error: str) -> str:
    """Why a file could not be read, without what a DICOM file holds: decoders quote the values that they stumble over."""
    known = ("DICOM with ", "DICOM without pixels", "DICOM compressed as ")
    if not taken.dicom or error.startswith(known):
        return error
    return "DICOM does not decode: its header or its pixels are broken, or it is not a grey or colour picture"


def sample(title: str, before: Sequence[Taken]) -> tuple[str, bytes]:
    """A drawn radiograph as a file, another one each time: its name, and PNG bytes.

    Args:
        title: one of `SAMPLES`.
    """
    number = 1 + sum(one.name.startswith(f"drawn, {title} ") for one in before)
    file = io.BytesIO()
    Image.fromarray(draw_radiograph(SAMPLES[title], number, seed=SAMPLE_SEED)).save(file, "PNG")
    return f"drawn, {title} {number}", file.getvalue()
