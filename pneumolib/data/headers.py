"""What a file says of its image before a pixel of it is unpacked: its format and how many pixels it would give.

A file of a few kilobytes can claim a picture of gigabytes. Whoever takes files from others reads this first.
"""

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from pneumolib.data.decoding import BROKEN, FORMATS, ImageFileError

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian


@dataclass(frozen=True)
class Header:
    """As the file states it.

    Attributes:
        form: of the file, by its content.
        width_px, height_px: as stored, before any turning.
        frames: pictures in the file; 1 where it says nothing.
    """

    form: Literal["JPEG", "PNG", "DICOM"]
    width_px: int
    height_px: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Of all frames together."""
        return self.width_px * self.height_px * self.frames


def form_of(raw: bytes) -> Literal["JPEG", "PNG", "DICOM"] | None:
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
    if not raw:
        raise ImageFileError("empty file (0 bytes)")
    form = form_of(raw)
    if form is None:
        raise ImageFileError("neither JPEG, PNG nor DICOM, by its first bytes")
    return _dicom_header(raw) if form == "DICOM" else _picture_header(raw, form)


def _picture_header(raw: bytes, form: Literal["JPEG", "PNG"]) -> Header:
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:  # reads up to the first pixels
            return Header(form, *image.size, frames=getattr(image, "n_frames", 1) if form == "PNG" else 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise ImageFileError(f"too many pixels: {fault}") from None
    except Image.UnidentifiedImageError:
        raise ImageFileError(f"begins as {form} and has no header of one") from None
    except BROKEN as fault:
        raise ImageFileError(f"does not decode: {fault}") from None


def _dicom_header(raw: bytes) -> Header:
    # pydicom inflates such a file as a whole when it is opened, however much comes out. Looked for in all of the bytes:
    # where the name of the syntax stands is the file's choice.
    if _DEFLATED in raw:
        raise ImageFileError("DICOM with a deflated data set, whose size shows only when unpacked; save it without")
    # Imported here: pydicom takes half a second that JPEG files need not wait for.
    from pydicom import dcmread

    from pneumolib.data.dicom import FAULTS

    try:
        names = ["Rows", "Columns", "NumberOfFrames"]
        dataset = dcmread(io.BytesIO(raw), stop_before_pixels=True, specific_tags=names)
        height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        frames = int(dataset.get("NumberOfFrames") or 1)
    except FAULTS:
        raise ImageFileError("DICOM whose header cannot be read") from None
    if min(width, height, frames) < 1:
        raise ImageFileError("DICOM without rows and columns of pixels")
    return Header("DICOM", width, height, frames)
