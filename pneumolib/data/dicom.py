"""A DICOM file to what a workstation would show of it: rescaled, windowed, white bones on a dark ground, eight bits.

Nothing but pixels and the facts of their encoding is read: names and numbers of patients are never looked at.
"""

import io

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_rescale, apply_voi_lut, pixel_array

from pneumolib.data.decoding import ImageFileError

_FAR = 1e9  # beyond any stored value: shows where a window ends


def decode_dicom(raw: bytes) -> tuple[np.ndarray, str, int, int]:
    """Pixels uint8 (height, width) or (height, width, 3), a mode in words, lowest and highest stored value.

    The order is the standard's (PS3.4, N.2): modality LUT or rescale, VOI LUT or window, presentation. The first VOI
    LUT is taken, else the first window; without either, eight bits stay as they are and deeper images are spread
    from their lowest to their highest value. MONOCHROME1 is turned over. Padding is black.

    Raises:
        ImageFileError: no pixels, several frames, a compression that needs another decoder, or broken data.
    """
    try:
        dataset = dcmread(io.BytesIO(raw))
        frames, photometric = int(dataset.get("NumberOfFrames") or 1), str(dataset.get("PhotometricInterpretation"))
        if frames > 1:
            raise ImageFileError(f"DICOM with {frames} frames; a radiograph is one picture")
        if "PixelData" not in dataset:
            raise ImageFileError("DICOM without pixels")
        stored = pixel_array(dataset)
        mode = f"DICOM {photometric} {dataset.BitsStored} bit"
        shown = _show(stored, dataset) if stored.ndim == 2 else _colour(stored, photometric)
    except InvalidDicomError as fault:
        raise ImageFileError(f"does not decode: {fault}") from None
    except (NotImplementedError, RuntimeError) as fault:  # pydicom's words for a missing decoder
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise ImageFileError(
            f"DICOM compressed as {syntax}, which needs a decoder that is not installed: "
            f"pip install python-gdcm ({str(fault).splitlines()[0]})"
        ) from None
    # Missing elements, elements of the wrong type, and pixel data shorter than rows x columns.
    except (AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError) as fault:
        raise ImageFileError(f"DICOM does not decode: {str(fault).splitlines()[0]}") from None
    return shown, mode, int(stored.min()), int(stored.max())


def _show(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    values = np.asarray(apply_rescale(stored, dataset), np.float64)
    padding = np.zeros(stored.shape, bool)
    if (level := dataset.get("PixelPaddingValue")) is not None:
        padding = stored == level
    values, low, high = _window(values, padding, dataset)
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        scaled = 1 - scaled
    return np.where(padding, 0, np.rint(255 * scaled)).astype(np.uint8)


def _window(values: np.ndarray, padding: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, float, float]:
    """Values after VOI LUT or window, and the ends of the range they are spread over."""
    if "VOILUTSequence" in dataset:
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        return np.asarray(apply_voi_lut(values.astype(np.int64), dataset), np.float64), 0, 2.0**bits - 1
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        with np.errstate(over="ignore"):  # a sigmoid window at its far ends
            low, high = apply_voi_lut(np.array([[-_FAR, _FAR]]), dataset)[0]
            return apply_voi_lut(values, dataset), low, high
    if dataset.BitsStored <= 8 and dataset.PixelRepresentation == 0:
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        return values, intercept, 255 * slope + intercept
    seen = values[~padding] if not padding.all() else values
    return values, seen.min(), seen.max()


def _colour(stored: np.ndarray, photometric: str) -> np.ndarray:
    """RGB or YBR, which pydicom has turned into RGB by now."""
    if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype != np.uint8:
        raise ImageFileError(
            f"DICOM of shape {stored.shape} and {photometric}; one grey or 8-bit RGB picture is needed"
        )
    return stored
