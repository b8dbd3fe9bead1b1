"""What equalisation does to distances: between the classes, and between training and test."""

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance

from pneumolib.data.images import ImageSet

_GREY = np.arange(256)


def histograms_of(sets: dict[str, ImageSet]) -> pd.DataFrame:
    """Pooled grey values by split and class: one row each, `split, label, histogram` (256 shares that sum to 1)."""
    rows = []
    for split, images in sets.items():
        labels = images.table.label.to_numpy()
        for label in sorted(set(labels)):
            # Image by image: `bincount` makes eight bytes of each pixel.
            counts = sum(
                np.bincount(images.pixels[i].reshape(-1), minlength=256) for i in np.flatnonzero(labels == label)
            )
            rows.append({"split": split, "label": label, "histogram": counts / counts.sum()})
    return pd.DataFrame(rows)


def grey_distances(histograms: pd.DataFrame) -> dict[str, float]:
    """Wasserstein distances between pooled grey values, in grey values (0 to 255): how far a pixel moves on average.

    Args:
        histograms: of `histograms_of`, splits train and test.
    Returns:
        `classes` (normal against pneumonia, in training), `shift_normal` and `shift_pneumonia` (training against test).
    Raises:
        KeyError: a class or split that is missing.
    """
    shares = histograms.set_index(["split", "label"]).histogram
    pairs = {
        "classes": (("train", 0), ("train", 1)),
        "shift_normal": (("train", 0), ("test", 0)),
        "shift_pneumonia": (("train", 1), ("test", 1)),
    }
    if missing := sorted({key for pair in pairs.values() for key in pair} - set(shares.index)):
        raise KeyError(
            f"histograms lack (split, label) {', '.join(map(str, missing))}; needed: train and test, 0 and 1"
        )
    return {
        name: float(wasserstein_distance(_GREY, _GREY, shares[one], shares[other]))
        for name, (one, other) in pairs.items()
    }
