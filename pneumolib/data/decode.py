"""A file's bytes to grey or RGB values of eight bits, whatever it was stored as: JPEG, PNG or DICOM.

What a file is, its first bytes say, not the ending of its name. Contract: 0 is black and 255 white; air is dark, so
DICOM's MONOCHROME1 is turned over; transparency is laid on black; more than eight bits are scaled down.

A file of a few kilobytes can claim a picture of gigabytes: `read_header` tells its size before a pixel is unpacked.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pneumolib.errors import ImageFileError

FORMATS = ("JPEG", "PNG")  # nothing else is opened: other decoders are an attack surface and no source of radiographs
MEGABYTE = 2**20
MOST_BYTES = 64 * MEGABYTE  # of a file; a detector's 20 million pixels of 16 bits take 40
MOST_PIXELS = 30_000_000  # of an image; DICOM is windowed at eight bytes a pixel
Form = Literal["JPEG", "PNG", "DICOM"]


@dataclass(frozen=True)
class Header:
    """As the file states it.

    Attributes:
        form: of the file, by its content.
        width_px, height_px: as stored, before any turning.
        frames: pictures in the file; 1 where it says nothing.
    """

    form: Form
    width_px: int
    height_px: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Of all frames together."""
        return self.width_px * self.height_px * self.frames


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


def read_file(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """An image file's bytes; a pipe, a device or a socket is refused before it is opened.

    Raises:
        ImageFileError: no regular file, or one above the limit.
        OSError: as for opening a file.
    """
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
        raise ImageFileError("not a regular file but a pipe, a device or a socket; copy its content into a file")
    if facts.st_size > most_bytes:
        raise ImageFileError(too_many_bytes(facts.st_size, most_bytes))
    return path.read_bytes()


def too_many_bytes(size: int, most: int) -> str:
    """Why a file of this size is refused."""
    return f"{size / MEGABYTE:.0f} MB; allowed are {most // MEGABYTE} MB for one file"


def form_of(raw: bytes) -> Form | None:
    """What a file's first bytes say it is; None for anything else."""
    if raw[128:132] == b"DICM":
        return "DICOM"
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "JPEG" if raw.startswith(b"\xff\xd8\xff") else None


def read_header(raw: bytes) -> Header:
    """Format and size of a file's image; no pixel is decoded.

    Raises:
        ImageFileError: empty, no JPEG, PNG or DICOM, a broken header, or more pixels than Pillow would open at all. The
            message holds nothing that was read from a DICOM file.
    """
    if form_of(raw) == "DICOM":
        # Imported here and below: pydicom takes half a second that JPEG files need not wait for.
        from pneumolib.data.dicom import read_size

        return Header("DICOM", *read_size(raw))
    with _opened(raw) as image:  # reads up to the first pixels
        return Header(form_of(raw), *image.size, frames=_frames(image))


def check_pixels(raw: bytes, most_pixels: int = MOST_PIXELS) -> Header:
    """The header of an image that may be decoded.

    Raises:
        ImageFileError: as `read_header`, or more pixels than allowed.
    """
    allowed = f"allowed are {most_pixels / 10**6:g} million pixels"
    try:
        header = read_header(raw)
    except ImageFileError as fault:
        # Of those that Pillow does not open either, the limit here is the smaller one.
        raise ImageFileError(
            f"too many pixels; {allowed}" if str(fault).startswith("too many pixels") else str(fault)
        ) from fault
    if header.pixels > most_pixels:
        frames = f" x {header.frames} frames" if header.frames > 1 else ""
        raise ImageFileError(f"{header.width_px} x {header.height_px} pixels{frames}; {allowed}")
    return header


def decode(raw: bytes, at_least_px: int | None = None, grey: bool = False, most_pixels: int = MOST_PIXELS) -> Decoded:
    """Decode a file to its end.

    Args:
        raw: the whole file.
        at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, no side below this; None for full size.
        grey: mode L, else L or RGB as stored.
        most_pixels: that a file may hold; it is compared with the header before a pixel is decoded.
    Raises:
        ImageFileError: empty, truncated, animated, too many pixels, or no JPEG, PNG or DICOM at all.
    """
    if check_pixels(raw, most_pixels).form == "DICOM":
        from pneumolib.data.dicom import decode_dicom

        pixels, mode = decode_dicom(raw, most_pixels)
        image = Image.fromarray(pixels)
        return Decoded(image.convert("L") if grey else image, image.width, image.height, mode, 0)
    with _opened(_without_end(raw) if form_of(raw) == "JPEG" else raw) as image:
        if (frames := _frames(image)) > 1:
            raise ImageFileError(f"animated ({frames} frames); a radiograph is one picture")
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
def _opened(raw: bytes) -> Iterator[Image.Image]:
    """A JPEG or PNG; whatever Pillow raises for it, here or in the block, becomes an ImageFileError."""
    if not raw:
        raise ImageFileError("empty file (0 bytes)")
    if form_of(raw) is None:
        raise ImageFileError("not a JPEG, PNG or DICOM image")
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise ImageFileError(f"too many pixels: {fault}") from None
    except Image.UnidentifiedImageError:
        raise ImageFileError(f"begins as {form_of(raw)} and has no header of one") from None
    except ImageFileError:
        raise
    # Broad: what Pillow raises for broken data, structure and facts (EXIF above all) has no common kind.
    except Exception as fault:
        raise ImageFileError(f"does not decode: {fault}") from fault


def _without_end(raw: bytes) -> bytes:
    """A JPEG with one scan, without its end mark. libjpeg fills what is missing before that mark with grey and says
    nothing; without the mark Pillow finds that the data end too early. Eight bytes are there for libjpeg to look ahead.
    A JPEG of several scans is left as it is: libjpeg needs its mark.
    """
    place = 2
    while raw[place : place + 1] == b"\xff" and raw[place + 1 : place + 2] not in (b"", b"\xda"):
        if raw[place + 1] == 0xC2:  # progressive
            return raw
        place += 1 if raw[place + 1] == 0xFF else 2 + int.from_bytes(raw[place + 2 : place + 4], "big")
    end = raw.find(b"\xff\xd9", place)
    return raw if end < 0 or b"\xff\xda" in raw[place + 2 : end] else raw[:end] + bytes(8)


def _frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format == "PNG" else 1


def _to_8_bit(image: Image.Image, grey: bool) -> Image.Image:
    """Mode L or RGB; transparent pixels show black."""
    if image.mode.startswith("I"):
        return _scale_deep_grey(np.asarray(image))
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # CMYK and palettes know no direct way to grey
    return image.convert("L") if grey else image


def _scale_deep_grey(values: np.ndarray) -> Image.Image:
    """PNG of 16 bits to its upper 8 used bits. Many hold the 10 to 12 bits of a detector, and those would come out
    black if the top byte were taken. The file does not say how many it uses, so its brightest pixel decides, in steps
    of the depths that detectors have: 8, 10, 12, 14 or 16.
    """
    bits = max(8, int(values.max()).bit_length())
    return Image.fromarray((values.astype(np.int64) >> (bits + bits % 2 - 8)).clip(0, 255).astype(np.uint8))
