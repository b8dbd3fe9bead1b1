"""What could tell the classes apart without the disease: facts of the file, and the frame around the lungs.

Contract: tables of features hold numbers, one row an image, by `image_id`; pixels are uint8 (n, height, width,
channels), as `data.read_images` gives them.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.images import ImageSet
from pneumolib.data.sources import LABEL_NAMES
from pneumolib.errors import DataError

MORE = {
    "log2_width_px": "wider",
    "log2_height_px": "taller",
    "log2_aspect": "wider for its height",
    "log2_bytes_per_px": "more bytes per pixel",
    "log2_quantisation_sum": "coarser JPEG quantisation",
    "is_jpeg": "JPEG and no other format",
    "mean_intensity": "brighter on average",
    "sd_intensity": "more spread of intensity",
}
CONSTANT = "constant, tells nothing"
# Facts of how a file was stored; the others depend on what the picture shows as well.
STORAGE = ["log2_width_px", "log2_height_px", "log2_aspect", "log2_quantisation_sum", "is_jpeg"]


def metadata_features(table: pd.DataFrame) -> pd.DataFrame:
    """What `Manifest.table` knows of each file without looking at a lung: float, by `image_id`.

    Sizes and quotients as log2, so that a doubling counts the same at any size. A file that is no JPEG has no
    quantisation and gets the mean of those that have; `is_jpeg` tells them apart. One column a mode (`mode_RGB`), 1 or 0, but for the most frequent mode.
    """
    features = {
        "log2_width_px": _log2(table.width_px),
        "log2_height_px": _log2(table.height_px),
        "log2_aspect": _log2(table.width_px / table.height_px),
        "log2_bytes_per_px": _log2(table.bytes / (table.width_px * table.height_px)),
        "log2_quantisation_sum": _quantisation(table.quantisation_sum),
        "is_jpeg": table.quantisation_sum > 0,
        "mean_intensity": table.mean_intensity,
        "sd_intensity": table.sd_intensity,
    }
    modes = table["mode"].value_counts().sort_index().sort_values(ascending=False, kind="stable").index
    # A lone mode keeps its column, to be listed as constant: nothing is dropped in silence.
    features |= {f"mode_{mode}": table["mode"] == mode for mode in (modes[1:] if len(modes) > 1 else modes)}
    return pd.DataFrame(features).astype(float).set_axis(pd.Index(table.image_id, name="image_id"))


def _quantisation(sums: pd.Series) -> pd.Series:
    known = np.log2(sums.astype(float).where(sums > 0))
    return known.fillna(known.mean() if known.notna().any() else 0.0)


def _log2(values: pd.Series) -> pd.Series:
    return np.log2(values.astype(float).where(values > 0, 1))


def in_words(feature: str, direction: float) -> str:
    """`more bytes per pixel → normal` for a feature and a number whose sign is its direction; above 0 is pneumonia."""
    if np.isnan(direction):
        return "not computable"
    more = MORE.get(feature) or (feature.replace("_", " ") if feature.startswith("mode_") else f"higher {feature}")
    return f"{more} → {LABEL_NAMES[int(direction > 0)]}"


def mask_centre(pixels: np.ndarray, border_fraction: float = 0.125) -> np.ndarray:
    """A copy with all but the frame black; the frame takes `border_fraction` of height and width on each side.

    Raises:
        DataError: pixels of another shape or type, or a fraction outside (0, 0.5).
    """
    _check(pixels, border_fraction)
    height, width = pixels.shape[1:3]
    down, across = _frame_px(height, border_fraction), _frame_px(width, border_fraction)
    masked = pixels.copy()
    masked[:, down : height - down, across : width - across] = 0
    return masked


def border_features(pixels: np.ndarray, border_fraction: float = 0.125, size: int = 32) -> np.ndarray:
    """Grey values of the frame of every image, uint8 (n, k), row by row from the top left.

    The image is masked first and then reduced to `size` x `size` by averaging areas, so that nothing of the centre can
    reach a feature; k is the number of cells that touch the frame, 448 for an eighth and 32.

    Raises:
        DataError: as `mask_centre`, or images smaller than `size`.
    """
    _check(pixels, border_fraction)
    if min(pixels.shape[1:3]) < size:
        raise DataError(f"size: received {size}, but the images are {pixels.shape[1]} x {pixels.shape[2]} px")
    frame = _frame_cells(pixels.shape[1:3], border_fraction, size)
    features = np.empty((len(pixels), int(frame.sum())), np.uint8)
    for row in range(len(pixels)):  # one by one: pixels are mapped from disk and need not fit into memory
        masked = mask_centre(pixels[row : row + 1], border_fraction)[0]
        grey = Image.fromarray(masked if masked.shape[2] == 3 else masked[..., 0]).convert("L")
        features[row] = np.asarray(grey.resize((size, size), Image.Resampling.BOX))[frame]
    return features


def border_table(parts: Sequence[ImageSet], border_fraction: float = 0.125, size: int = 32) -> pd.DataFrame:
    """`border_features` of train, val and test in one table by `image_id`, for `judge_shortcut`; a column a cell."""
    rows, columns = np.nonzero(_frame_cells(parts[0].pixels.shape[1:3], border_fraction, size))
    names = [f"grey of row {row}, column {column}" for row, column in zip(rows, columns, strict=True)]
    return pd.concat(
        pd.DataFrame(border_features(part.pixels, border_fraction, size), index=part.table.image_id, columns=names)
        for part in parts
    )


def _check(pixels: np.ndarray, border_fraction: float) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise DataError(
            f"pixels: expected uint8 (n, height, width, 1 or 3), received {pixels.dtype} {tuple(pixels.shape)}"
        )
    if not 0 < border_fraction < 0.5:
        raise DataError(f"border_fraction: received {border_fraction}, allowed: above 0, below 0.5")


def _frame_px(side_px: int, border_fraction: float) -> int:
    return min(max(1, round(border_fraction * side_px)), (side_px - 1) // 2)  # a centre is left to mask


def _frame_cells(shape_px: tuple[int, int], border_fraction: float, size: int) -> np.ndarray:
    """Cells of the reduced image that hold a pixel of the frame, bool (size, size)."""
    down, across = (math.ceil(_frame_px(side, border_fraction) * size / side) for side in shape_px)
    frame = np.ones((size, size), bool)
    frame[down : size - down, across : size - across] = False
    return frame
