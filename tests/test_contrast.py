"""What equalisation does to distances of grey values."""

import numpy as np
import pandas as pd
import pytest

from pneumolib.data.contrast import grey_distances, histograms_of
from pneumolib.data.images import ImageSet


def flat(split, level0, level1, n=6):
    labels = np.arange(n) % 2
    pixels = np.where(labels[:, None, None, None], level1, level0) * np.ones((n, 8, 8, 1))
    table = pd.DataFrame({"image_id": [f"{split}{i}" for i in range(n)], "split": split, "label": labels})
    return ImageSet(table, pixels.astype(np.uint8))


def test_distances_are_in_grey_values():
    histograms = histograms_of({"train": flat("train", 50, 80), "test": flat("test", 50, 100)})
    assert [share.sum() for share in histograms.histogram] == pytest.approx([1] * 4)
    assert grey_distances(histograms) == pytest.approx({"classes": 30, "shift_normal": 0, "shift_pneumonia": 20})
    with pytest.raises(KeyError, match="histograms lack"):
        grey_distances(histograms[histograms.split == "train"])
