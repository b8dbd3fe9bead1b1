"""What is known of an image without a diagnosis: facts of its file and of its pixels, all in one list, `FACTS`.

The audit asks whether they tell the classes apart (`metadata_features`, `border_features`). `ood` asks whether an image
is like those of training (`image_facts`, `content_features`).

Contract: tables hold numbers, one row an image; pixels are uint8 (n, height, width, channels) as a network sees them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.decode import decode
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.data.pixels import ImageSet
from pneumolib.errors import DataError


class Fact(NamedTuple):
    """One fact of an image and what it is asked for.

    Attributes:
        title: for tables.
        kind: of its out-of-distribution warning; empty where there is none.
        warning: sentence of the warning, with `{value}`, `{limit}`, `{training}`, `{darker}` and `{less}`.
        more: what a larger value is called in the audit; empty where the audit does not use the fact.
        log2: whether the audit takes the logarithm, so that a doubling counts the same at any size.
    """

    title: str
    kind: str = ""
    warning: str = ""
    more: str = ""
    log2: bool = False


FACTS = {
    # Of the file.
    "width_px": Fact("Width (px)", "size", "{value:.0f} px wide ({training})", "wider", True),
    "height_px": Fact("Height (px)", "size", "{value:.0f} px high ({training})", "taller", True),
    "aspect": Fact(
        "Width / height", "size", "width / height is {value:.2f} ({training})", "wider for its height", True
    ),
    "bytes_per_px": Fact("Bytes per pixel", more="more bytes per pixel", log2=True),
    "quantisation_sum": Fact("JPEG quantisation", more="coarser JPEG quantisation", log2=True),
    "is_jpeg": Fact("File format", more="JPEG and no other format"),
    "mean_intensity": Fact("Mean grey value", more="brighter on average"),
    "sd_intensity": Fact("SD of grey values", more="more spread of intensity"),
    # Of the pixels that a network sees, and the colour of the file.
    "mean_grey": Fact("Mean grey (0-255)", "exposure", "{darker} on average: grey {value:.0f} ({training})"),
    "sd_grey": Fact("SD of grey", "exposure", "{less} contrast: SD of grey {value:.0f} ({training})"),
    "dark_grey": Fact(
        "Grey that 5% of pixels lie below", "exposure", "its dark parts have grey {value:.0f} ({training})"
    ),
    "bright_grey": Fact(
        "Grey that 5% of pixels lie above", "exposure", "its bright parts have grey {value:.0f} ({training})"
    ),
    "colour": Fact("Colour (difference of channels)", "colour", "a picture in colour, where radiographs are grey"),
    # The only one that looks at where anything is in the picture.
    "distance": Fact(
        "Distance of what is where",
        "content",
        "does not look like the training images (distance {value:.1f}, limit {limit:.1f}): is it an upright frontal "
        "chest radiograph?",
    ),
}
KINDS = {name: fact.kind for name, fact in FACTS.items() if fact.kind}
# Facts of how a file was stored; the audit's others depend on what the picture shows as well.
STORAGE = ["log2_width_px", "log2_height_px", "log2_aspect", "log2_quantisation_sum", "is_jpeg"]
CONSTANT = "constant, tells nothing"
_GREY_MODES = ("L", "1", "I", "LA", "DICOM MONOCHROME")
_CELLS, _SIDE = 8, 32


def metadata_features(table: pd.DataFrame) -> pd.DataFrame:
    """What `Manifest.table` knows of each file without looking at a lung: float, by `image_id`.

    A file that is no JPEG has no quantisation and gets the mean of those that have; `is_jpeg` tells them apart. One
    column a mode (`mode_RGB`), 1 or 0, but for the most frequent mode.
    """
    known = table.assign(
        aspect=table.width_px / table.height_px,
        bytes_per_px=table.bytes / (table.width_px * table.height_px),
        is_jpeg=table.quantisation_sum > 0,
    )
    features = {}
    for name, fact in FACTS.items():
        if fact.log2:
            logarithms = np.log2(known[name].astype(float).where(known[name] > 0))
            features[f"log2_{name}"] = logarithms.fillna(logarithms.mean()).fillna(0)
        elif fact.more:
            features[name] = known[name]
    modes = table["mode"].value_counts().sort_index().sort_values(ascending=False, kind="stable").index
    # A lone mode keeps its column, to be listed as constant: nothing is dropped in silence.
    features |= {f"mode_{mode}": table["mode"] == mode for mode in (modes[1:] if len(modes) > 1 else modes)}
    return pd.DataFrame(features).astype(float).set_axis(pd.Index(table.image_id, name="image_id"))


def in_words(feature: str, direction: float) -> str:
    """`more bytes per pixel → normal` for a feature and a number whose sign is its direction; above 0 is pneumonia."""
    if np.isnan(direction):
        return "not computable"
    fact = FACTS.get(feature.removeprefix("log2_"))
    other = feature.replace("_", " ") if feature.startswith("mode_") else f"higher {feature}"
    return f"{fact.more if fact else other} → {LABEL_NAMES[int(direction > 0)]}"


# --- the frame around the lungs


def mask_centre(pixels: np.ndarray, border_fraction: float = 0.125) -> np.ndarray:
    """A copy with all but the frame black; the frame takes `border_fraction` of height and width on each side.

    Raises:
        DataError: pixels of another shape or type.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise DataError(f"pixels: expected uint8 (n, height, width, channels), received {pixels.dtype} {pixels.shape}")
    down, across = _frame_px(pixels.shape[1:3], border_fraction)
    masked = pixels.copy()
    masked[:, down:-down, across:-across] = 0
    return masked


def border_features(pixels: np.ndarray, border_fraction: float = 0.125, size: int = 32) -> np.ndarray:
    """Grey values of the frame of every image, uint8 (n, k), row by row from the top left.

    The image is masked first and then reduced to `size` x `size` by averaging areas, so that nothing of the centre can
    reach a feature; k is the number of cells that touch the frame, 448 for an eighth and 32.

    Raises:
        DataError: as `mask_centre`, or images smaller than `size`.
    """
    if min(pixels.shape[1:3]) < size:
        raise DataError(f"size: received {size}, but the images are {pixels.shape[1]} x {pixels.shape[2]} px")
    frame = _frame_cells(pixels.shape[1:3], border_fraction, size)
    # One by one: pixels are mapped from disk and need not fit into memory.
    masked = (mask_centre(image[None], border_fraction)[0] for image in pixels)
    cells = [np.asarray(_grey(image).resize((size, size), Image.Resampling.BOX))[frame] for image in masked]
    return np.array(cells, np.uint8).reshape(len(pixels), int(frame.sum()))


def border_table(parts: Sequence[ImageSet], border_fraction: float = 0.125, size: int = 32) -> pd.DataFrame:
    """`border_features` of train, val and test in one table by `image_id`, for `judge_shortcut`; a column a cell."""
    rows, columns = np.nonzero(_frame_cells(parts[0].pixels.shape[1:3], border_fraction, size))
    names = [f"grey of row {row}, column {column}" for row, column in zip(rows, columns, strict=True)]
    return pd.concat(
        pd.DataFrame(border_features(part.pixels, border_fraction, size), index=part.table.image_id, columns=names)
        for part in parts
    )


def _frame_px(shape_px: tuple[int, int], border_fraction: float) -> list[int]:
    """Height and width of the frame at each side; a centre is left to mask."""
    return [min(max(1, round(border_fraction * side)), (side - 1) // 2) for side in shape_px]


def _frame_cells(shape_px: tuple[int, int], border_fraction: float, size: int) -> np.ndarray:
    """Cells of the reduced image that hold a pixel of the frame, bool (size, size)."""
    widths = _frame_px(shape_px, border_fraction)
    down, across = (math.ceil(width * size / side) for width, side in zip(widths, shape_px, strict=True))
    frame = np.ones((size, size), bool)
    frame[down : size - down, across : size - across] = False
    return frame


# --- what out-of-distribution warnings look at


def colour_of(source: bytes | Path, mode: str) -> float:
    """Mean difference between the largest and the smallest channel of a file's pixels, 0 to 255; 0 for grey files.

    Args:
        source: the whole file, or its path.
        mode: as `decode` gives it; a file of a grey mode is not decoded again.
    """
    if mode.startswith(_GREY_MODES):
        return 0.0
    raw = source if isinstance(source, bytes) else source.read_bytes()
    pixels = np.asarray(decode(raw, at_least_px=64).image.convert("RGB"), np.int16)
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean())


def image_facts(pixels: np.ndarray, files: pd.DataFrame) -> pd.DataFrame:
    """The facts in `KINDS` but for `distance`, one row each.

    Args:
        pixels: (n, height, width, channels).
        files: columns `width_px, height_px, colour`, n rows, see `colour_of`.
    """
    counts = np.stack([np.array(_grey(one).histogram(), float) for one in pixels])
    levels, n = np.arange(256), counts[0].sum()
    mean, below = counts @ levels / n, counts.cumsum(axis=1) / n
    files = files[["width_px", "height_px", "colour"]].astype(float).reset_index(drop=True)
    found = files.assign(
        aspect=files.width_px / files.height_px,
        mean_grey=mean,
        sd_grey=np.sqrt(np.maximum(counts @ levels**2 / n - mean**2, 0)),
        dark_grey=(below < 0.05).sum(axis=1),  # one pixel in twenty is darker
        bright_grey=(below < 0.95).sum(axis=1),
    )
    return found[[name for name in KINDS if name in found]]


def content_features(pixels: np.ndarray) -> np.ndarray:
    """What is where, roughly: float (n, 67).

    The grey image in 8 x 8 cells, less its mean and divided by its spread, so that exposure and contrast count little;
    and how rough it is at three scales (the log of the mean step from one cell to the next, of 32, 16 and 8 cells a side).
    """
    cells = np.stack([np.asarray(_grey(one).resize((_SIDE, _SIDE), Image.Resampling.BOX), float) for one in pixels])
    rough = [_roughness(cells)]
    while cells.shape[1] > _CELLS:
        cells = cells.reshape(len(cells), cells.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))
        rough.append(_roughness(cells))
    flat = cells.reshape(len(cells), -1)
    flat = (flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 4)
    return np.concatenate([flat, np.stack(rough, axis=1)], axis=1)


def _roughness(cells: np.ndarray) -> np.ndarray:
    return np.log(0.1 + sum(np.abs(np.diff(cells, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)))


def _grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0]) if pixels.shape[2] == 1 else Image.fromarray(pixels).convert("L")
