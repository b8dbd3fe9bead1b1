"""A file's bytes to grey or RGB values of eight bits, whatever it was stored as: JPEG, PNG or DICOM.

What a file is, its first bytes say, not the ending of its name. Contract: 0 is black and 255 white; air is dark, so
DICOM's MONOCHROME1 is turned over; transparency is laid on black; more than eight bits are scaled down.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps

# What Pillow raises for broken files: OSError for data that is cut, SyntaxError and ValueError for broken structure, the others
# for facts within it (EXIF above all) that are of another type or size than they must be.
BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, EOFError,
    struct.error, zlib.error,
)  # fmt: skip
FORMATS = ("JPEG", "PNG")  # nothing else is opened: other decoders are an attack surface and no source of radiographs


class ImageFileError(OSError):
    """A file that gives no image; the message is the reason, without the path."""


class MissingDecoderError(ImageFileError):
    """A file that another package could read; the message names it."""


@dataclass(frozen=True)
class Decoded:
    """An image and what its file said of it.

    Attributes:
        image: Pillow image of mode L or RGB; smaller than the file's when a reduced size was asked for.
        width_px, height_px: of the file.
        mode: as stored: Pillow's name, or `DICOM <photometric interpretation> <bits> bit`.
        quantisation_sum: of a JPEG's luma table, higher for lower quality; 0 for other formats.
        pixel_min, pixel_max: stored values before scaling, of the image as decoded.
    """

    image: Image.Image
    width_px: int
    height_px: int
    mode: str
    quantisation_sum: int
    pixel_min: int
    pixel_max: int


def decode(raw: bytes, at_least_px: int | None = None, grey: bool = False) -> Decoded:
    """Decode a file to its end.

    Args:
        raw: the whole file.
        at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, no side below this; None for full size.
        grey: mode L, else L or RGB as stored.
    Raises:
        ImageFileError: empty, truncated, animated, too many pixels, or no JPEG, PNG or DICOM at all.
    """
    if not raw:
        raise ImageFileError("empty file (0 bytes)")
    if raw[128:132] == b"DICM":
        # Imported here: pydicom takes half a second that studies of JPEG files need not wait for.
        from pneumolib.data.dicom import decode_dicom

        pixels, mode, low, high = decode_dicom(raw)
        image = Image.fromarray(pixels)
        return Decoded(image.convert("L") if grey else image, image.width, image.height, mode, 0, low, high)
    try:
        return _decode_picture(raw, at_least_px, grey)
    except Image.UnidentifiedImageError:
        raise ImageFileError(f"not a JPEG, PNG or DICOM image: begins with {raw[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise ImageFileError(f"too many pixels: {fault}") from None
    except ImageFileError:
        raise
    except BROKEN as fault:
        raise ImageFileError(f"does not decode: {fault}") from None


def _decode_picture(raw: bytes, at_least_px: int | None, grey: bool) -> Decoded:
    with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
        if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise ImageFileError(f"animated ({image.n_frames} frames); a radiograph is one picture")
        # Pillow would keep the top byte, and in many such files that holds next to nothing.
        if image.format == "PNG" and raw[24] == 16 and raw[25] != 0:
            raise ImageFileError("PNG of 16 bits in colour or with transparency; save it as 16-bit grey or with 8 bits")
        mode, (width, height) = image.mode, image.size
        table = getattr(image, "quantization", {}).get(0, [])
        if at_least_px is not None:
            image.draft("L" if grey and mode != "CMYK" else image.mode, (at_least_px, at_least_px))
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
        low, high = _stored_range(image)
        plain = _to_8_bit(image, grey)
    width, height = (height, width) if turned else (width, height)
    return Decoded(plain, width, height, mode, int(sum(table)), low, high)


def _stored_range(image: Image.Image) -> tuple[int, int]:
    ranges = image.getextrema()
    ranges = ranges if isinstance(ranges[0], tuple) else (ranges,)
    return int(min(low for low, _ in ranges)), int(max(high for _, high in ranges))


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
