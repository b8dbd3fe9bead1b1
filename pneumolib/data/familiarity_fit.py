"""`familiarity` fitted to training images, and its false alarms counted on validation."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from pneumolib.data.familiarity import (
    GREY_MODES,
    KINDS,
    QUANTILES,
    Familiarity,
    alarms,
    colour_of,
    content_features,
    mahalanobis,
    plain_facts,
)
from pneumolib.data.images import ImageSet
from pneumolib.data.manifest import Manifest

_RANGE = (0.001, 0.999)  # of training images, what is within has no warning
_DISTANCE = 0.99
# Mean difference of a pixel's channels above which a picture has colour. Radiographs that were saved in colour have 0 to 2.
COLOURED = 8.0
_FOLDS = 5
_MOST = 4000  # images looked at; more move no limit by much
_PORTION = 256


def fit_familiarity(manifest: Manifest, train: ImageSet, val: ImageSet) -> Familiarity:
    """What the training images are like, and how often validation images, which are like them, would be warned of.

    Limits of a fact hold all training images but the outermost 0.1% at either end; that of the distance holds 99%, each
    image judged by a centre and spread (Ledoit and Wolf's, J Multivar Anal 2004) that were fitted without its patient.
    The limit of colour is fixed.

    Args:
        manifest: facts of the files.
        train, val: from `read_images`; of more than 4,000 images each that many are drawn.
    """
    rows = _some_rows(train)
    table = train.table.iloc[rows]
    files = _files(manifest, table)
    seen = [(plain_facts(pixels, files[here]), content_features(pixels)) for here, pixels in _portions(train, rows)]
    features = np.concatenate([one for _, one in seen])
    centre, precision = _centre_and_precision(features)
    distances = _held_out_distances(features, table.group_id.to_numpy())
    facts = pd.concat([one for one, _ in seen], ignore_index=True).assign(distance=distances)
    limits = {name: np.quantile(facts[name], _RANGE) for name in facts}
    limits |= {"colour": (0.0, COLOURED), "distance": (0.0, np.quantile(distances, _DISTANCE))}
    validated = _some_rows(val)
    found = Familiarity(
        len(rows),
        len(validated),
        # Not rounded: where all images are of one size, a rounded end would leave all of them out.
        {name: tuple(np.quantile(facts[name], QUANTILES).tolist()) for name in facts},
        {name: tuple(map(float, ends)) for name, ends in limits.items()},
        _rounded(centre),
        _rounded(precision[np.tril_indices_from(precision)]),
        dict.fromkeys([*dict.fromkeys(KINDS.values()), "any"]),
    )
    if len(validated):
        warned = alarms(found, _describe(found, manifest, val, validated))
        found.false_alarms.update({kind: float(share) for kind, share in warned.mean().items()})
    return found


def describe_images(familiarity: Familiarity, manifest: Manifest, images: ImageSet) -> pd.DataFrame:
    """All facts and the `image_id` of images of a manifest, such as another hospital's."""
    return _describe(familiarity, manifest, images, np.arange(len(images)))


def _describe(familiarity: Familiarity, manifest: Manifest, images: ImageSet, rows: np.ndarray) -> pd.DataFrame:
    table = images.table.iloc[rows]
    files = _files(manifest, table)
    facts = [familiarity.facts(pixels, files[here]) for here, pixels in _portions(images, rows)]
    return pd.concat(facts, ignore_index=True).assign(image_id=table.image_id.to_numpy())


def _some_rows(images: ImageSet) -> np.ndarray:
    """All, or as many as are looked at, in order."""
    rows = np.arange(len(images))
    return rows if len(rows) <= _MOST else np.sort(np.random.default_rng(0).choice(rows, _MOST, replace=False))


def _portions(images: ImageSet, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Pixels of some rows, a few at a time, however many there are and wherever they lie."""
    for start in range(0, len(rows), _PORTION):
        here = rows[start : start + _PORTION].tolist()
        yield slice(start, start + len(here)), np.concatenate([images.pixels[row : row + 1] for row in here])


def _files(manifest: Manifest, table: pd.DataFrame) -> pd.DataFrame:
    """`width_px, height_px, colour` of the images of `table`, in its order."""
    known = manifest.table.set_index("image_id").loc[table.image_id]
    colours = list(_colours(manifest, known))
    return known[["width_px", "height_px"]].assign(colour=colours).reset_index(drop=True)


def _colours(manifest: Manifest, known: pd.DataFrame) -> Iterator[float]:
    for path, mode in zip(known.path, known["mode"], strict=True):
        grey = mode.startswith(GREY_MODES)
        yield 0.0 if grey else colour_of((manifest.root / path).read_bytes(), mode)


def _held_out_distances(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Of each image from the others, no image of its own group among them."""
    codes, names = pd.factorize(groups)
    folds = min(_FOLDS, len(names))
    fold_of = np.random.default_rng(0).permutation(len(names))[codes] % folds
    distances = np.zeros(len(features))
    for fold in range(folds) if folds > 1 else ():
        held = fold_of == fold
        distances[held] = mahalanobis(features[held], *_centre_and_precision(features[~held]))
    return distances


def _centre_and_precision(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(features)
    return fitted.location_, fitted.precision_


def _rounded(values) -> tuple[float, ...]:
    """Six significant digits: what is left out moves no distance by more than a hundred-thousandth."""
    return tuple(float(f"{value:.6g}") for value in np.asarray(values, float))
