"""What is known of an image without a diagnosis: facts of its file and of its pixels, all in one list, `FACTS`.

The audit asks whether they tell the classes apart (`metadata_features`, `border_table`). Out-of-distribution warnings
ask whether an image is like those that a network was trained on: each fact has a range. All that is fitted lies in
`TrainingReference`, plain numbers that fit into `result.json`; nothing here knows a network or a label. A warning says
that nobody has measured how the network does on such images, not that its predicted class is wrong; an image without one
may still be of another kind.

Contract: tables hold numbers, one row an image; pixels are uint8 (n, height, width, channels) as a network sees them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.data.decode import LIMITS, decode, read_file
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import ImageSet, picture_of
from pneumolib.params import DataParams


class Fact(NamedTuple):
    """One fact of an image and what it is asked for.

    Attributes:
        title: for tables.
        kind: of its out-of-distribution warning; empty where there is none.
        warning: sentence of the warning, with `{value}`, `{low}`, `{high}`, `{darker}` and `{less}`.
        more: what a larger value is called in the audit; empty where the audit does not use the fact.
        log2: whether the audit takes the logarithm, so that a doubling counts the same at any size.
    """

    title: str
    kind: str = ""
    warning: str = ""
    more: str = ""
    log2: bool = False


_USUAL = " (training images: {low:.4g} to {high:.4g})"
_FARTHER = " (distance {value:.1f}, limit {high:.1f}): is it an upright frontal chest radiograph?"
FACTS = {
    # Of the file.
    "width_px": Fact("Width (px)", "size", "{value:.0f} px wide" + _USUAL, "wider", True),
    "height_px": Fact("Height (px)", "size", "{value:.0f} px high" + _USUAL, "taller", True),
    "aspect": Fact("Width / height", "size", "width / height is {value:.2f}" + _USUAL, "wider for its height", True),
    "bytes_per_px": Fact("Bytes per pixel", more="more bytes per pixel", log2=True),
    "quantisation_sum": Fact("JPEG quantisation", more="coarser JPEG quantisation", log2=True),
    "is_jpeg": Fact("File format", more="JPEG and no other format"),
    "mean_intensity": Fact("Mean grey value", more="brighter on average"),
    "sd_intensity": Fact("SD of grey values", more="more spread of intensity"),
    # Of the pixels that a network sees, and the colour of the file.
    "mean_grey": Fact("Mean grey (0-255)", "exposure", "{darker} on average: grey {value:.0f}" + _USUAL),
    "sd_grey": Fact("SD of grey", "exposure", "{less} contrast: SD of grey {value:.0f}" + _USUAL),
    "dark_grey": Fact("Grey that 5% of pixels lie below", "exposure", "its dark parts have grey {value:.0f}" + _USUAL),
    "bright_grey": Fact(
        "Grey that 5% of pixels lie above", "exposure", "its bright parts have grey {value:.0f}" + _USUAL
    ),
    "colour": Fact("Colour (difference of channels)", "colour", "a picture in colour, where radiographs are grey"),
    # The only one that looks at where anything is in the picture.
    "distance": Fact("Distance of what is where", "content", "does not look like the training images" + _FARTHER),
}
KINDS = {name: fact.kind for name, fact in FACTS.items() if fact.kind}
# Facts of how a file was stored; the audit's others depend on what the picture shows as well.
STORAGE = ["log2_width_px", "log2_height_px", "log2_aspect", "log2_quantisation_sum", "is_jpeg"]
CONSTANT = "constant, tells nothing"
_GREY_MODES = ("L", "1", "I", "LA", "DICOM MONOCHROME")
_CELLS, _SIDE = 8, 32
QUANTILES = (0.0, 0.025, 0.25, 0.5, 0.75, 0.975, 1.0)
_RANGE = (0.001, 0.999)  # of training images, what is within has no warning
_DISTANCE = 0.99
# Mean difference of a pixel's channels above which a picture has colour. Radiographs that were saved in colour have 0 to 2.
COLOURED = 8.0
_FOLDS = 5
_MOST = 4000  # images looked at; more move no limit by much
_PORTION = 256


def metadata_features(table: pd.DataFrame) -> pd.DataFrame:
    """What `Manifest.table` knows of each file without looking at a lung: float, by `image_id`.

    A file that is no JPEG has no quantisation and gets the mean of those that have; `is_jpeg` tells them apart. One
    column a mode (`mode_RGB`), 1 or 0, but for the most frequent mode.
    """
    aspect, area = table.width_px / table.height_px, table.width_px * table.height_px
    known = table.assign(aspect=aspect, bytes_per_px=table.bytes / area, is_jpeg=table.quantisation_sum > 0)
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
    """A copy with all but the frame black; the frame takes `border_fraction` of height and width on each side."""
    # A centre is left to mask.
    down, across = (min(max(1, round(border_fraction * side)), (side - 1) // 2) for side in pixels.shape[1:3])
    masked = pixels.copy()
    masked[:, down:-down, across:-across] = 0
    return masked


def border_table(parts: Sequence[ImageSet], border_fraction: float = 0.125) -> pd.DataFrame:
    """Grey values of the frame of train, val and test in one table by `image_id`, for `judge_shortcut`; a column a cell.

    An image, 32 pixels wide and high at least, is masked first and then reduced to 32 x 32 by averaging areas, so that
    nothing of the centre can reach a feature; there are as many cells as touch the frame, 448 for an eighth.
    """
    white = np.full((1, *parts[0].pixels.shape[1:]), 255, np.uint8)
    frame = _cells_of(mask_centre(white, border_fraction)[0]) > 0
    names = [f"grey of row {row}, column {column}" for row, column in np.argwhere(frame)]
    # One by one: pixels are mapped from disk and need not fit into memory.
    cells = [_cells_of(mask_centre(image[None], border_fraction)[0])[frame] for part in parts for image in part.pixels]
    ids = pd.concat([part.table.image_id for part in parts])
    return pd.DataFrame(np.array(cells, np.uint8), index=pd.Index(ids), columns=names)


# --- what out-of-distribution warnings look at


def colour_of(source: bytes | Path, mode: str, limits: DataParams = LIMITS) -> float:
    """Mean difference between the largest and the smallest channel of a file's pixels, 0 to 255; 0 for grey files.

    Args:
        source: the whole file, or its path.
        mode: as `decode` gives it; a file of a grey mode is not decoded again.
        limits: how large a file may be.
    """
    if mode.startswith(_GREY_MODES):
        return 0.0
    raw = source if isinstance(source, bytes) else read_file(source, limits)
    pixels = np.asarray(decode(raw, at_least_px=64, limits=limits).image.convert("RGB"), np.int16)
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean())


def image_facts(pixels: np.ndarray, files: pd.DataFrame) -> pd.DataFrame:
    """The facts in `KINDS` but for `distance`, one row each.

    Args:
        pixels: (n, height, width, channels).
        files: columns `width_px, height_px, colour`, n rows, see `colour_of`.
    """
    counts = np.stack([np.array(picture_of(one).convert("L").histogram(), float) for one in pixels])
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
    cells = np.stack([_cells_of(image) for image in pixels]).astype(float)
    rough = [_roughness(cells)]
    while cells.shape[1] > _CELLS:
        cells = cells.reshape(len(cells), cells.shape[1] // 2, 2, -1, 2).mean(axis=(2, 4))
        rough.append(_roughness(cells))
    flat = cells.reshape(len(cells), -1)
    flat = (flat - flat.mean(axis=1, keepdims=True)) / (flat.std(axis=1, keepdims=True) + 4)
    return np.concatenate([flat, np.stack(rough, axis=1)], axis=1)


def _roughness(cells: np.ndarray) -> np.ndarray:
    return np.log(0.1 + sum(np.abs(np.diff(cells, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)))


def _cells_of(image: np.ndarray) -> np.ndarray:
    """Grey values of an image in 32 x 32 cells, uint8."""
    return np.asarray(picture_of(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX))


# --- out-of-distribution warnings


@dataclass(frozen=True)
class TrainingReference:
    """What the training images of a network are like.

    Attributes:
        training_images, validation_images: how many were looked at.
        quantiles: for each fact its `QUANTILES` in training.
        limits: for each fact the lowest and highest value without a warning.
        centre, precision: of the features (see `content_features`), for the distance; of the symmetric precision matrix
            the lower triangle, row by row.
        validation_warnings: share of validation images with a warning of each kind, and of `any`; None without
            validation images.
    """

    # For results, which hold it: pydantic refuses what is not named here, in every version.
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    training_images: int
    validation_images: int
    quantiles: dict[str, tuple[float, ...]]
    limits: dict[str, tuple[float, float]]
    centre: tuple[float, ...]
    precision: tuple[float, ...]
    validation_warnings: dict[str, float | None]

    def facts(self, pixels: np.ndarray, files: pd.DataFrame) -> pd.DataFrame:
        """All facts in `KINDS` of some images, one row each; arguments are those of `image_facts`."""
        lower = np.zeros((len(self.centre), len(self.centre)))
        lower[np.tril_indices_from(lower)] = self.precision
        distances = mahalanobis(content_features(pixels), np.asarray(self.centre), lower + np.tril(lower, -1).T)
        return image_facts(pixels, files).assign(distance=distances)

    def unusual(self, facts: pd.DataFrame) -> pd.DataFrame:
        """Which facts lie outside their limits, bool, columns `KINDS`."""
        lowest, highest = np.array([self.limits[name] for name in KINDS]).T
        facts = facts[list(KINDS)]
        # A fact that all training images share, such as a width after a resize, tells nothing about another image.
        return ((facts < lowest) | (facts > highest)) & (lowest < highest)

    def flagged(self, facts: pd.DataFrame) -> pd.DataFrame:
        """Which images are warned of: bool columns `size, exposure, colour, content, any`, one row for each of `facts`."""
        unusual = self.unusual(facts)
        return unusual.T.groupby(KINDS, sort=False).any().T.assign(any=unusual.any(axis=1))

    def warnings(self, facts: pd.DataFrame) -> list[tuple[str, ...]]:
        """A sentence for each unusual fact of each image, the most telling first."""
        rows = zip(facts.to_dict("records"), self.unusual(facts).to_dict("records"), strict=True)
        return [tuple(self._sentence(name, row[name]) for name in reversed(KINDS) if odd[name]) for row, odd in rows]

    def _sentence(self, name: str, value: float) -> str:
        low, high = self.limits[name]
        darker, less = ("darker", "less") if value < low else ("brighter", "more")
        return FACTS[name].warning.format(value=value, low=low, high=high, darker=darker, less=less)


def fit_ood(manifest: Manifest, train: ImageSet, val: ImageSet) -> TrainingReference:
    """What the training images are like, and how often validation images, which are like them, would be warned of.

    Limits of a fact hold all training images but the outermost 0.1% at either end; that of the distance holds 99%, each
    image judged by a centre and spread (Ledoit and Wolf's, J Multivar Anal 2004) that were fitted without its patient.
    The limit of colour is fixed.

    Args:
        manifest: facts of the files.
        train, val: from `read_images`; of more than 4,000 images each that many are drawn.
    """
    rows, val_rows = _some_rows(train), _some_rows(val)
    seen = [(image_facts(*both), content_features(both[0])) for both in _portions(manifest, train, rows)]
    facts, features = pd.concat([one for one, _ in seen], ignore_index=True), np.concatenate([two for _, two in seen])
    facts["distance"] = _held_out_distances(features, train.table.group_id.iloc[rows])
    limits = {name: tuple(np.quantile(facts[name], _RANGE).tolist()) for name in facts}
    limits |= {"colour": (0.0, COLOURED), "distance": (0.0, float(np.quantile(facts.distance, _DISTANCE)))}
    centre, precision = _centre_and_precision(features)
    # Not rounded: where all images are of one size, a rounded end would leave all of them out.
    quantiles = {name: tuple(np.quantile(facts[name], QUANTILES).tolist()) for name in facts}
    lower = _rounded(precision[np.tril_indices_from(precision)])
    reference = TrainingReference(len(rows), len(val_rows), quantiles, limits, _rounded(centre), lower, {})
    warned = reference.flagged(describe_images(reference, manifest, val, val_rows))
    return replace(reference, validation_warnings=warned.mean().to_dict())


def describe_images(
    reference: TrainingReference, manifest: Manifest, images: ImageSet, rows: np.ndarray | None = None
) -> pd.DataFrame:
    """All facts and the `image_id` of images of a manifest, such as another hospital's; of some `rows` or of all."""
    rows = np.arange(len(images)) if rows is None else rows
    facts = [reference.facts(pixels, files) for pixels, files in _portions(manifest, images, rows)]
    return pd.concat(facts, ignore_index=True).assign(image_id=images.table.image_id.to_numpy()[rows])


def _some_rows(images: ImageSet) -> np.ndarray:
    """All, or as many as are looked at, in order."""
    rows = np.arange(len(images))
    return rows if len(rows) <= _MOST else np.sort(np.random.default_rng(0).choice(rows, _MOST, replace=False))


def _portions(manifest: Manifest, images: ImageSet, rows: np.ndarray) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Pixels, and `width_px, height_px, colour` of the files, of some rows, a few at a time, however many there are."""
    known = manifest.table.set_index("image_id").loc[images.table.image_id.iloc[rows]]
    for start in range(0, len(rows), _PORTION):
        files = known.iloc[start : start + _PORTION]
        modes = zip(files.path, files["mode"], strict=True)
        colours = [colour_of(manifest.root / path, mode, manifest.limits) for path, mode in modes]
        yield images.pixels[rows[start : start + _PORTION]], files.assign(colour=colours)


def _held_out_distances(features: np.ndarray, groups: pd.Series) -> np.ndarray:
    """Of each image from the others, no image of its own group among them."""
    codes, names = pd.factorize(groups)
    folds = min(_FOLDS, len(names))
    fold_of = np.random.default_rng(0).permutation(len(names))[codes] % folds
    distances = np.zeros(len(features))
    for fold in range(folds) if folds > 1 else ():
        held = fold_of == fold
        distances[held] = mahalanobis(features[held], *_centre_and_precision(features[~held]))
    return distances


def mahalanobis(features: np.ndarray, centre: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Distances (n,) of features (n, k) from a centre (k,), in units of the spread whose inverse is `precision` (k, k)."""
    away = features - centre
    return np.sqrt(np.einsum("ni,ni->n", away @ precision, away))


def _centre_and_precision(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.covariance import LedoitWolf  # a second that a prediction need not wait for

    fitted = LedoitWolf().fit(features)
    return fitted.location_, fitted.precision_


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Six significant digits: what is left out moves no distance by more than a hundred-thousandth."""
    return tuple(float(f"{value:.6g}") for value in values)
