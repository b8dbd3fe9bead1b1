"""Is an image like those a network was trained on? Out-of-distribution warnings from `facts`, each with a range.

All that is fitted lies in `TrainingReference`, plain numbers that fit into `result.json`; nothing here knows a network or
a label. A warning says that nobody has measured how the network does on such images, not that its predicted class is
wrong; an image without one may still be of another kind.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pneumolib.data.facts import FACTS, KINDS, colour_of, content_features, image_facts
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import ImageSet

QUANTILES = (0.0, 0.025, 0.25, 0.5, 0.75, 0.975, 1.0)
_RANGE = (0.001, 0.999)  # of training images, what is within has no warning
_DISTANCE = 0.99
# Mean difference of a pixel's channels above which a picture has colour. Radiographs that were saved in colour have 0 to 2.
COLOURED = 8.0
_FOLDS = 5
_MOST = 4000  # images looked at; more move no limit by much
_PORTION = 256


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

    training_images: int
    validation_images: int
    quantiles: dict[str, tuple[float, ...]]
    limits: dict[str, tuple[float, float]]
    centre: tuple[float, ...]
    precision: tuple[float, ...]
    validation_warnings: dict[str, float | None]

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance from the centre of the training images, float (n,), of features (n, k)."""
        lower = np.zeros((len(self.centre), len(self.centre)))
        lower[np.tril_indices_from(lower)] = self.precision
        return mahalanobis(features, np.asarray(self.centre), lower + np.tril(lower, -1).T)

    def facts(self, pixels: np.ndarray, files: pd.DataFrame) -> pd.DataFrame:
        """All facts in `KINDS` of some images, one row each; arguments are those of `image_facts`."""
        return image_facts(pixels, files).assign(distance=self.distances(content_features(pixels)))

    def unusual(self, facts: pd.DataFrame) -> pd.DataFrame:
        """Which facts lie outside their limits, bool, columns `KINDS`."""
        lowest, highest = np.array([self.limits[name] for name in KINDS]).T
        facts = facts[list(KINDS)]
        return (facts < lowest) | (facts > highest)

    def warnings(self, facts: pd.DataFrame) -> list[tuple[str, ...]]:
        """A sentence for each unusual fact of each image, the most telling first."""
        rows = zip(facts.to_dict("records"), self.unusual(facts).to_dict("records"), strict=True)
        return [
            tuple(self._sentence(name, values[name]) for name in reversed(KINDS) if odd[name]) for values, odd in rows
        ]

    def _sentence(self, fact: str, value: float) -> str:
        low, high = self.limits[fact]
        darker, less = ("darker", "less") if value < low else ("brighter", "more")
        training = f"training images: {low:.4g} to {high:.4g}"
        return FACTS[fact].warning.format(value=value, limit=high, training=training, darker=darker, less=less)


def ood_warnings(reference: TrainingReference, facts: pd.DataFrame) -> pd.DataFrame:
    """Which images are warned of: bool columns `size, exposure, colour, content, any`, one row for each of `facts`."""
    unusual = reference.unusual(facts)
    return unusual.T.groupby(KINDS, sort=False).any().T.assign(any=unusual.any(axis=1))


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
    limits = {name: np.quantile(facts[name], _RANGE) for name in facts}
    limits |= {"colour": (0.0, COLOURED), "distance": (0.0, np.quantile(facts.distance, _DISTANCE))}
    centre, precision = _centre_and_precision(features)
    reference = TrainingReference(
        len(rows),
        len(val_rows),
        # Not rounded: where all images are of one size, a rounded end would leave all of them out.
        {name: tuple(np.quantile(facts[name], QUANTILES).tolist()) for name in facts},
        {name: tuple(map(float, ends)) for name, ends in limits.items()},
        _rounded(centre),
        _rounded(precision[np.tril_indices_from(precision)]),
        dict.fromkeys([*KINDS.values(), "any"]),
    )
    if len(val_rows) == 0:
        return reference
    warned = ood_warnings(reference, describe_images(reference, manifest, val, val_rows))
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
        colours = [colour_of(manifest.root / path, mode) for path, mode in zip(files.path, files["mode"], strict=True)]
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
