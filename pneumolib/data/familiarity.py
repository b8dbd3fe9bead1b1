"""Is an image like those a network was trained on? Facts of the file and of the pixels, each with a range, and one distance.

Contract: pixels are uint8 (n, height, width, channels) as a network sees them. All that is fitted lies in `Familiarity`,
plain numbers that fit into `result.json`; nothing here knows a network or a label. A warning says that nobody has measured
how the network does on such images, not that its call is wrong; an image without one may still be of another kind.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.decode import decode

# What each fact is about. `distance` is the only one that looks at where anything is in the picture.
KINDS = {
    "width_px": "size", "height_px": "size", "aspect": "size", "mean_grey": "exposure", "sd_grey": "exposure",
    "dark_grey": "exposure", "bright_grey": "exposure", "colour": "colour", "distance": "content",
}  # fmt: skip
_CELLS, _SIDE = 8, 32
QUANTILES = (0.0, 0.025, 0.25, 0.5, 0.75, 0.975, 1.0)
GREY_MODES = ("L", "1", "I", "LA", "DICOM MONOCHROME")


@dataclass(frozen=True)
class Familiarity:
    """What the training images of a network are like.

    Attributes:
        training_images, validation_images: how many were looked at.
        quantiles: for each fact its `QUANTILES` in training.
        limits: for each fact the lowest and highest value without a warning.
        centre, precision: of the features (see `content_features`), for the distance; of the symmetric precision matrix
            the lower triangle, row by row.
        false_alarms: share of validation images with a warning of each kind, and of `any`; None without validation images.
    """

    training_images: int
    validation_images: int
    quantiles: dict[str, tuple[float, ...]]
    limits: dict[str, tuple[float, float]]
    centre: tuple[float, ...]
    precision: tuple[float, ...]
    false_alarms: dict[str, float | None]

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance from the centre of the training images, float (n,), of features (n, k)."""
        lower = np.zeros((len(self.centre), len(self.centre)))
        lower[np.tril_indices_from(lower)] = self.precision
        return mahalanobis(features, np.asarray(self.centre), lower + np.tril(lower, -1).T)

    def facts(self, pixels: np.ndarray, files: pd.DataFrame) -> pd.DataFrame:
        """All facts of some images, one row each, columns `KINDS`.

        Args:
            pixels: (n, height, width, channels).
            files: columns `width_px, height_px, colour`, n rows, see `colour_of`.
        """
        table = plain_facts(pixels, files)
        return table.assign(distance=self.distances(content_features(pixels)))

    def unusual(self, facts: pd.DataFrame) -> pd.DataFrame:
        """Which facts lie outside their limits, bool, the shape and names of `facts`."""
        ends = np.array([self.limits[name] for name in facts]).T
        return (facts < ends[0]) | (facts > ends[1])

    def warnings(self, facts: pd.DataFrame) -> list[tuple[str, ...]]:
        """A sentence for each unusual fact of each image, the most telling first."""
        odd = self.unusual(facts)[list(KINDS)].to_numpy()
        said: list[tuple[str, ...]] = [()] * len(facts)
        for row in odd.any(axis=1).nonzero()[0]:
            names = [name for name, strange in zip(KINDS, odd[row], strict=True) if strange]
            said[row] = tuple(_in_words(name, facts[name].iloc[row], self.limits[name]) for name in reversed(names))
        return said


def mahalanobis(features: np.ndarray, centre: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Distances (n,) of features (n, k) from a centre (k,), in units of the spread whose inverse is `precision` (k, k)."""
    away = features - centre
    return np.sqrt(np.einsum("ni,ni->n", away @ precision, away))


def colour_of(raw: bytes, mode: str) -> float:
    """Mean difference between the largest and the smallest channel of a file's pixels, 0 to 255; 0 for grey files.

    Args:
        raw: the whole file.
        mode: as `decode` gives it; a file of a grey mode is not decoded again.
    """
    if mode.startswith(GREY_MODES):
        return 0.0
    pixels = np.asarray(decode(raw, at_least_px=64).image.convert("RGB"), np.int16)
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean())


def content_features(pixels: np.ndarray) -> np.ndarray:
    """What is where, roughly: float (n, 67).

    The grey image in 8 x 8 cells, less its mean and divided by its spread, so that exposure and contrast count little;
    and how rough it is at three scales (the log of the mean step from one cell to the next, of 32, 16 and 8 cells a side).
    """
    small = np.stack([np.asarray(_grey(one).resize((_SIDE, _SIDE), Image.Resampling.BOX), float) for one in pixels])
    rough, cells = [], small
    while True:
        rough.append(np.log(0.1 + sum(np.abs(np.diff(cells, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))))
        if cells.shape[1] == _CELLS:
            break
        cells = cells.reshape(len(cells), cells.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))
    flat = cells.reshape(len(cells), -1)
    flat = (flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 4)
    return np.concatenate([flat, np.stack(rough, axis=1)], axis=1)


def alarms(familiarity: Familiarity, facts: pd.DataFrame) -> pd.DataFrame:
    """Which images are warned of: bool columns `size, exposure, colour, content, any`, one row for each of `facts`."""
    unusual = familiarity.unusual(facts[list(KINDS)])
    kinds = {
        kind: unusual[[name for name in unusual if KINDS[name] == kind]].any(axis=1)
        for kind in dict.fromkeys(KINDS.values())
    }
    return pd.DataFrame(kinds | {"any": unusual.any(axis=1)})


def plain_facts(pixels: np.ndarray, files: pd.DataFrame) -> pd.DataFrame:
    """All facts but the distance, see `Familiarity.facts`."""
    counts = np.stack([np.array(_grey(one).histogram(), float) for one in pixels])
    levels, n = np.arange(256), counts[0].sum()
    mean = counts @ levels / n
    below = counts.cumsum(axis=1) / n
    return pd.DataFrame({
        "width_px": files.width_px.to_numpy(float),
        "height_px": files.height_px.to_numpy(float),
        "aspect": files.width_px.to_numpy(float) / files.height_px.to_numpy(float),
        "mean_grey": mean,
        "sd_grey": np.sqrt(np.maximum(counts @ levels**2 / n - mean**2, 0)),
        "dark_grey": (below < 0.05).sum(axis=1),  # one pixel in twenty is darker
        "bright_grey": (below < 0.95).sum(axis=1),
        "colour": files.colour.to_numpy(float),
    })  # fmt: skip


def _grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0]) if pixels.shape[2] == 1 else Image.fromarray(pixels).convert("L")


def _in_words(fact: str, value: float, limits: tuple[float, float]) -> str:
    low, high = limits
    theirs = f"training images: {low:.4g} to {high:.4g}"
    words = {
        "width_px": f"{value:.0f} px wide ({theirs})",
        "height_px": f"{value:.0f} px high ({theirs})",
        "aspect": f"width / height is {value:.2f} ({theirs})",
        "mean_grey": f"{'darker' if value < low else 'brighter'} on average: grey {value:.0f} ({theirs})",
        "sd_grey": f"{'less' if value < low else 'more'} contrast: SD of grey {value:.0f} ({theirs})",
        "dark_grey": f"its dark parts have grey {value:.0f} ({theirs})",
        "bright_grey": f"its bright parts have grey {value:.0f} ({theirs})",
        "colour": "a picture in colour, where radiographs are grey",
        "distance": f"does not look like the training images (distance {value:.1f}, limit {high:.1f}): is it an upright frontal "
        "chest radiograph?",
    }
    return words[fact]
