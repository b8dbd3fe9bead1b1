"""A DICOM file to what a workstation would show of it: rescaled, windowed, white bones on a dark ground, eight bits.

Nothing but pixels and the facts of their encoding is read: names and numbers of patients are never looked at.
"""

import contextlib
import io
import itertools
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_rescale, apply_voi_lut, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from pneumolib.data.decode import by_level, check_last_scan, check_pixels, scans_of, spread, usual_range, without_end
from pneumolib.errors import ImageFileError
from pneumolib.params import DataParams

_FAR = 1e9  # beyond any stored value: shows where a window ends
GREY = ("MONOCHROME1", "MONOCHROME2")
_OVERLAY_BIT = 0x0102  # the element that says which bit an overlay is kept in; 0 where it has data of its own
_FORMATS = ("JPEG", "JPEG2000")  # no other decoder of Pillow is reached, such as that of PostScript
_PADDING = 128  # bytes that some programs add to a segment of RLE; the standard allows one
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian
# Elements that are there but empty count as absent: removing a patient's name often leaves them so.
_MAY_BE_EMPTY = (
    "WindowCenter", "WindowWidth", "VOILUTSequence", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept",
    "PixelPaddingValue",
)  # fmt: skip


def read_dicom(raw: bytes, limits: DataParams) -> Dataset:
    """The elements of a file whose picture is not too large; no pixel is decoded.

    Without preamble or file meta, pydicom guesses from the first element how the others are written.

    Raises:
        ImageFileError: a broken header, one without a size, too many pixels, or several frames. The message holds nothing that was read
            from the file but its size.
    """
    # pydicom inflates such a file as a whole when it is opened, however much comes out. Looked for in all of the bytes:
    # the file chooses where the name of the syntax is.
    if _DEFLATED in raw:
        raise ImageFileError("DICOM with a deflated data set, whose size shows only when unpacked; save it without")
    try:
        dataset = dcmread(io.BytesIO(raw), force=True)
        width, height = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
        frames = int(dataset.get("NumberOfFrames") or 1)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            uncompressed = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else uncompressed
    except Exception:  # noqa: BLE001 - as below; no cause, which could hold a patient's name
        raise ImageFileError("DICOM whose header cannot be read") from None
    # Text that reads as a number is none, for all that comes.
    if min(width, height, frames) < 1 or (dataset.Columns, dataset.Rows) != (width, height):
        raise ImageFileError("DICOM without rows and columns of pixels")
    check_pixels(width, height, limits)
    if frames > 1:
        raise ImageFileError(f"DICOM with {frames} frames; a radiograph is one picture")
    return dataset


def decode_dicom(dataset: Dataset) -> tuple[np.ndarray, str]:
    """Pixels uint8 (height, width) or (height, width, 3), and a mode in words.

    The order is the standard's (PS3.4, N.2): modality LUT or rescale, VOI LUT or window, presentation. The first VOI
    LUT is taken, else the first window of a width above 0; without either, eight bits and fewer are spread over the
    range of their bits, and deeper images over their `usual_range`. MONOCHROME1 is turned over. Padding is black.

    Raises:
        ImageFileError: no pixels, broken data, or a compression that needs another decoder.
    """
    try:
        photometric = str(dataset.get("PhotometricInterpretation"))
        if "PixelData" not in dataset:
            raise ImageFileError("DICOM without pixels")
        if (samples := int(dataset.get("SamplesPerPixel") or 1)) > 3:
            raise ImageFileError("DICOM with more than three values a pixel")
        if samples > 1 and dataset.BitsAllocated != 8:  # before it takes the memory of three such pictures
            raise ImageFileError(f"DICOM in colour of {dataset.BitsAllocated} bits; 8-bit colour is needed")
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            _check_codestream(dataset)
        stored = _stored(dataset)
        mode = f"DICOM {photometric} {dataset.BitsStored} bit"
        return _show(stored, dataset) if photometric in GREY else _colour(stored, dataset, photometric), mode
    except ImageFileError:
        raise
    # What pydicom and its decoders raise for missing, wrong and cut elements and for unusual compression has no common kind.
    except Exception as fault:  # noqa: BLE001
        reason = (str(fault) or type(fault).__name__).splitlines()[0]
        if isinstance(fault, RuntimeError):  # compressed pixels
            reason = f"{reason.rstrip(':')}. Where a decoder is missing: pip install python-gdcm"
        raise ImageFileError(f"DICOM does not decode: {reason}") from None


def _check_codestream(dataset: Dataset) -> None:
    """Refuse compressed pixels that would unpack to more than the header says, and a JPEG that was cut and closed again."""
    for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # could lead pydicom to another frame than this
        dataset.pop(table, None)
    syntax = dataset.file_meta.TransferSyntaxUID
    frame, size = get_frame(dataset.PixelData, 0, number_of_frames=1), (dataset.Columns, dataset.Rows)
    if syntax == RLELossless:
        count, *places = struct.unpack_from("<16L", frame)
        segments, most = itertools.pairwise([*places[:count], len(frame)]), size[0] * size[1] + _PADDING
        if not count or any(_unpacked(frame[start:end], most) > most for start, end in segments):
            raise ImageFileError("DICOM with more compressed pixels than its rows and columns, or with none")
        return
    end, scans = scans_of(frame) if syntax == JPEGBaseline8Bit else (0, 0)
    frame = without_end(frame, end) if scans == 1 else frame
    with contextlib.suppress(UnidentifiedImageError), Image.open(io.BytesIO(frame), formats=_FORMATS) as image:
        if image.size != size:
            raise ImageFileError(f"DICOM with {image.size[0]} x {image.size[1]} compressed pixels, unlike its header")
        if syntax == JPEGBaseline8Bit:
            image.load()
        if scans > 1:
            check_last_scan(frame, end)


def _unpacked(segment: bytes, enough: int) -> int:
    """How many bytes a segment of RLE becomes (PS3.5, G.3); what is above `enough` is not counted."""
    place = length = 0
    while place < len(segment) and length <= enough:
        code = segment[place]
        length += 0 if code == 128 else code + 1 if code < 128 else 257 - code
        place += 1 if code == 128 else code + 2 if code < 128 else 2
    return length


def _stored(dataset: Dataset) -> np.ndarray:
    """The values. Bits above those that the header says are used are refused: cut off, they would make bright places dark."""
    stored, bits = pixel_array(dataset, correct_unused_bits=False), int(dataset.BitsStored)
    # Older files keep overlays in these bits.
    overlay = any(e.tag.group & 0xFF00 == 0x6000 and e.tag.elem == _OVERLAY_BIT and e.value for e in dataset)
    lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    if not overlay and not lowest <= stored.min() <= stored.max() < 2**bits:
        raise ImageFileError("DICOM with values above its BitsStored; correct that element, or save it again")
    return pixel_array(dataset) if overlay or lowest else stored  # signed values may lack the bits of their sign


def _show(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    if stored.ndim != 2:
        raise ImageFileError(f"DICOM of shape {stored.shape}; one grey picture is needed")
    for name in _MAY_BE_EMPTY:
        if name in dataset and (dataset[name].is_empty or dataset[name].VM == 0):
            del dataset[name]
    # One of the two alone counts for pydicom as none.
    dataset.RescaleSlope, dataset.RescaleIntercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)

    def shown(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
        values = np.asarray(apply_rescale(levels.astype(stored.dtype), dataset), np.float64)
        padding = levels == dataset.get("PixelPaddingValue")
        values, low, high = _window(values, np.where(padding, 0, counts), dataset)
        scaled = spread(values, low, high)
        return np.where(padding, 0, 1 - scaled if dataset.PhotometricInterpretation == "MONOCHROME1" else scaled)

    return by_level(stored, shown)


def _window(values: np.ndarray, counts: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, float, float]:
    """Values after VOI LUT or window, what is shown black of them and what white."""
    if "VOILUTSequence" in dataset:
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        return np.asarray(apply_voi_lut(values.astype(np.int64), dataset), np.float64), 0, 2.0**bits - 1
    # The first window, if the standard allows it: a linear one is at least 1 wide, the others are wider than 0.
    width = float(np.ravel(dataset.get("WindowWidth", 0))[0])
    linear = str(dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR"
    if "WindowCenter" in dataset and (width >= 1 if linear else width > 0):
        with np.errstate(over="ignore"):  # a sigmoid window at its far ends
            # With a slope below 0, what pydicom gives for the lowest value is the larger number.
            low, high = apply_voi_lut(np.array([[-_FAR, _FAR]]), dataset)[0]
            return apply_voi_lut(values, dataset), low, high
    if dataset.BitsStored <= 8 and dataset.PixelRepresentation == 0 and "ModalityLUTSequence" not in dataset:
        black = float(dataset.RescaleIntercept)
        white = (2**dataset.BitsStored - 1) * float(dataset.RescaleSlope) + black
        return values, min(black, white), max(black, white)
    return values, *usual_range(values, counts)


def _colour(stored: np.ndarray, dataset: Dataset, photometric: str) -> np.ndarray:
    """RGB; YBR has been turned into it by now."""
    if photometric == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        return coloured if coloured.dtype == np.uint8 else (coloured >> 8).astype(np.uint8)
    if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype != np.uint8:
        found = f"DICOM of shape {stored.shape}, {stored.dtype} and {photometric}"
        raise ImageFileError(f"{found}; {' or '.join(GREY)}, or 8-bit colour is needed")
    return stored
