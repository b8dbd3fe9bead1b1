"""A file's bytes to grey or RGB values of eight bits, whatever it was stored as: JPEG, PNG or DICOM.

What a file is, its first bytes say, not the ending of its name. Contract: 0 is black and 255 white; air is dark, so
DICOM's MONOCHROME1 is turned over; transparency is laid on black; more than eight bits are scaled down by one rule,
`usual_range`, for PNG and for DICOM that names no window.

A file of a few kilobytes can claim a picture of gigabytes: its header is compared with `data.max_megapixels` before a
pixel is unpacked.
"""

import contextlib
import io
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pneumolib.errors import ImageFileError
from pneumolib.params import DataParams

FORMATS = ("JPEG", "PNG")  # nothing else is opened: other decoders are an attack surface and no source of radiographs
MEGABYTE = 2**20
LIMITS = DataParams()  # where nobody says what a file may hold
# The first element of a DICOM data set, or of its file meta, where the 128 bytes before `DICM` are missing: a small group,
# then two letters for the type of a value, or a short length.
_BARE_DICOM = re.compile(rb"[\2\x08\x10\x18 (]\0..([A-Z]{2}|..\0\0)|\0[\2\x08\x10\x18 (]..[A-Z]{2}", re.DOTALL)
_MARK = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")  # begins a part of a JPEG; within the data of a scan these may follow FF
_MORE_DATA = np.random.default_rng(0).integers(0, 255, 4096, np.uint8).tobytes()  # of a scan, without a mark
_MANY_PIXELS, _ONE_AT_A_TIME = 10**7, threading.RLock()
_OUTER = 2000  # one pixel of so many, and one at least, may lie far out at either end


@dataclass(frozen=True)
class Decoded:
    """An image and what its file said of it.

    Attributes:
        image: Pillow image of mode L or RGB; smaller than the file's when a reduced size was asked for.
        width_px, height_px: of the file.
        mode: as stored: Pillow's name, or `DICOM <photometric interpretation> <bits> bit`.
        quantisation_sum: of a JPEG's luma table, higher for lower quality; 0 for other formats.
    """

    image: Image.Image
    width_px: int
    height_px: int
    mode: str
    quantisation_sum: int


def read_file(path: Path, limits: DataParams = LIMITS) -> bytes:
    """An image file's bytes; a pipe, a device or a socket is refused before it is opened.

    Raises:
        ImageFileError: no regular file, or one above `limits.max_file_mb`.
        OSError: as for opening a file.
    """
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
        raise ImageFileError("not a regular file but a pipe, a device or a socket; copy its content into a file")
    check_bytes(facts.st_size, limits)
    return path.read_bytes()


def check_bytes(size: int, limits: DataParams) -> None:
    """Raise ImageFileError for a file of more bytes than allowed."""
    if size > limits.max_file_mb * MEGABYTE:
        raise ImageFileError(f"{size / MEGABYTE:.1f} MB; data.max_file_mb allows {limits.max_file_mb:g} MB")


def check_pixels(width: int, height: int, limits: DataParams) -> None:
    """Raise ImageFileError for an image of more pixels than allowed."""
    if width * height > limits.max_megapixels * 10**6:
        raise ImageFileError(f"{width} x {height} pixels; data.max_megapixels allows {limits.max_megapixels:g} million")


def form_of(raw: bytes) -> Literal["JPEG", "PNG", "DICOM"] | None:
    """What a file's first 132 bytes say it is; None for anything else."""
    if raw[128:132] == b"DICM" or _BARE_DICOM.match(raw):
        return "DICOM"
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "JPEG" if raw.startswith(b"\xff\xd8\xff") else None


def decode(raw: bytes, at_least_px: int | None = None, grey: bool = False, limits: DataParams = LIMITS) -> Decoded:
    """Decode a file to its end.

    Args:
        raw: the whole file.
        at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, no side below this; None for full size.
        grey: mode L, else L or RGB as stored.
        limits: `max_file_mb` and `max_megapixels`, which is compared with the header before a pixel is decoded.
    Raises:
        ImageFileError: empty, truncated, animated, too large, or no JPEG, PNG or DICOM at all.
    """
    end, scans = scans_of(raw) if form_of(raw) == "JPEG" else (0, 0)
    with opened(without_end(raw, end) if scans == 1 else raw, limits) as image:
        if form_of(raw) == "DICOM":
            from pneumolib.data.dicom import decode_dicom

            pixels, mode = decode_dicom(image)
            image = Image.fromarray(pixels)
            return Decoded(image.convert("L") if grey else image, image.width, image.height, mode, 0)
        if scans > 1:
            check_last_scan(raw, end)
        # Pillow would keep the top byte, and in many such files that holds next to nothing.
        if image.format == "PNG" and raw[24] == 16 and raw[25] != 0:
            raise ImageFileError("PNG of 16 bits in colour or with transparency; save it as 16-bit grey or with 8 bits")
        mode, (width, height) = image.mode, image.size
        table = getattr(image, "quantization", {}).get(0, [])
        if at_least_px is not None:
            image.draft("L" if grey and mode != "CMYK" else mode, (at_least_px, at_least_px))
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            width, height = height, width
        ImageOps.exif_transpose(image, in_place=True)
        return Decoded(_to_8_bit(image, grey), width, height, mode, int(sum(table)))


@contextlib.contextmanager
def opened(raw: bytes, limits: DataParams = LIMITS) -> Iterator[Any]:
    """A JPEG or PNG as Pillow's image or a DICOM file as pydicom's data set, of one picture that may be decoded.

    No pixel is. Whatever Pillow raises for a JPEG or PNG, here or in the block, becomes an ImageFileError.

    Raises:
        ImageFileError: empty, no JPEG, PNG or DICOM, a broken header, animated, or more bytes or pixels than allowed. The
            message holds nothing that was read from a DICOM file but its size.
    """
    check_bytes(len(raw), limits)
    if not raw:
        raise ImageFileError("empty file (0 bytes)")
    if (form := form_of(raw)) is None:
        raise ImageFileError("not a JPEG, PNG or DICOM image")
    if form == "DICOM":
        # Imported here and above: pydicom takes half a second that JPEG files need not wait for.
        from pneumolib.data.dicom import read_dicom

        dataset = read_dicom(raw, limits)
        with _turn(dataset.Columns * dataset.Rows):
            yield dataset
        return
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            check_pixels(*image.size, limits)
            if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
                raise ImageFileError(f"animated ({image.n_frames} frames); a radiograph is one picture")
            with _turn(image.width * image.height):
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # above any limit that can be set here
        raise ImageFileError(f"too many pixels; data.max_megapixels allows {limits.max_megapixels:g} million") from None
    except Image.UnidentifiedImageError:
        raise ImageFileError(f"begins as {form} and has no header of one") from None
    except ImageFileError:
        raise
    # Broad: what Pillow raises for broken data, structure and facts (EXIF above all) has no common kind.
    except Exception as fault:
        raise ImageFileError(f"does not decode: {fault}") from fault


def _turn(pixels: int) -> contextlib.AbstractContextManager:
    """Files of many pixels are decoded one after the other, however many threads there are: each takes hundreds of megabytes."""
    return _ONE_AT_A_TIME if pixels > _MANY_PIXELS else contextlib.nullcontext()


def check_not_blank(image: Image.Image) -> None:
    """Raise ImageFileError for a picture of one grey value, which shows nothing."""
    low, high = image.convert("L").getextrema()
    if low == high:
        raise ImageFileError("blank: all of its pixels have one grey value")


def without_end(raw: bytes, end: int) -> bytes:
    """A JPEG with one scan, without its end mark. libjpeg fills what is missing before that mark with grey and says
    nothing; without the mark Pillow finds that the data end too early. Eight bytes are there for libjpeg to look ahead.
    A JPEG of several scans cannot be read so: libjpeg needs its mark.
    """
    return raw[:end] + bytes(8)


def check_last_scan(raw: bytes, end: int) -> None:
    """Refuse a JPEG of several scans that was cut and closed again: bytes before its end mark are read if its last scan
    is not whole, and change the picture. After a whole scan libjpeg skips them.
    """
    files = (raw[:end] + more + raw[end:] for more in (b"", _MORE_DATA))
    plain, filled = (Image.open(io.BytesIO(file), formats=["JPEG"]).tobytes() for file in files)
    if plain != filled:
        raise ImageFileError("truncated: its last scan ends too early")


def scans_of(raw: bytes) -> tuple[int, int]:
    """Where a JPEG's end mark is, its whole length without one, and the number of its scans; progressive ones count as two or more."""
    place, scans = 2, 0
    while (mark := _MARK.search(raw, place)) and mark[0] != b"\xff\xd9":
        scans += mark[0] in (b"\xff\xda", b"\xff\xc2")
        place = mark.end() + int.from_bytes(raw[mark.end() : mark.end() + 2], "big")
    return mark.start() if mark else len(raw), scans


def _to_8_bit(image: Image.Image, grey: bool) -> Image.Image:
    """Mode L or RGB; transparent pixels show black."""
    if image.mode.startswith("I"):
        scaled = by_level(np.asarray(image), lambda levels, counts: spread(levels, *usual_range(levels, counts)))
        return Image.fromarray(scaled)
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # CMYK and palettes know no direct way to grey
    return image.convert("L") if grey else image


def by_level(stored: np.ndarray, show: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Grey values uint8 of stored integers, (height, width): computed once for each value, not for each pixel.

    Args:
        show: from levels, ascending, and the number of pixels of each, to what is shown of them, 0 black to 1 white.
    Raises:
        ImageFileError: values more than 16 bits apart.
    """
    lowest, highest = int(stored.min()), int(stored.max())
    if highest - lowest >= 2**16:
        raise ImageFileError("values of more than 16 bits; save it with 16 or fewer")
    levels, places = np.arange(lowest, highest + 1), np.subtract(stored, lowest, dtype=np.intp)
    counts = np.bincount(places.reshape(-1), minlength=len(levels))
    return np.rint(255 * show(levels, counts)).astype(np.uint8)[places]


def usual_range(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """What is shown black and what white where a file does not say it: its lowest and its highest value. A value counts
    for this if it is no farther from the range of the inner 99.9% of the pixels than half of that range is wide, so that
    a dead or hot pixel does not flatten all others.
    """
    counts = counts if counts.any() else counts + 1
    order = np.argsort(values, kind="stable")
    values, below = values[order], counts[order].cumsum()
    outer = min(max(1, below[-1] // _OUTER), (below[-1] - 1) // 2)
    low, high = values[np.searchsorted(below, [outer + 1, below[-1] - outer])]
    used, margin = values[np.diff(below, prepend=0) > 0], (high - low) / 2 or np.inf
    used = used[(used >= low - margin) & (used <= high + margin)]
    return used[0], used[-1]


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 up to `low`, 1 from `high` on."""
    return np.clip((values - low) / (high - low if high != low else 1), 0, 1)
