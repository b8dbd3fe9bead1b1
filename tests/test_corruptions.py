"""Corrupted copies: what must stay, what must grow, and what decides them."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from pneumolib.data.corruptions import SEVERITIES, corrupt
from pneumolib.data.drawing import draw_radiograph
from pneumolib.data.pixels import ChangedPixels
from pneumolib.params import Corruption

BOTH_WAYS = ["gamma", "contrast", "rotation", "zoom", "stretch"]


def radiographs(side: int, n: int = 8) -> np.ndarray:
    """Drawn ones, uint8 (n, side, side, 1)."""
    kinds = ("bacteria", "IM", "virus", "NORMAL2-IM")
    drawn = (Image.fromarray(draw_radiograph(kinds[i % 4], i)).convert("L") for i in range(n))
    return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in drawn])[..., None]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return radiographs(64)


def distance(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each image, in grey values."""
    return np.abs(one.astype(float) - two).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("name", get_args(Corruption))
def test_what_every_change_keeps(pixels, name):
    far = np.array([distance(corrupt(pixels, name, severity, 1), pixels) for severity in SEVERITIES])
    assert (far[0] > 0).all()
    assert (np.diff(far.mean(axis=1)) > 0).all()  # severity takes an image farther from what it was
    colour = np.repeat(pixels[:3, :, :48], 3, axis=3)  # and an image need not be square
    before = colour.copy()
    changed = corrupt(colour, name, 4, 1)
    assert (changed.shape, changed.dtype) == (colour.shape, np.uint8)
    np.testing.assert_array_equal(colour, before)
    assert (changed[..., :1] == changed).all()
    np.testing.assert_array_equal(changed[..., :1], corrupt(colour[..., :1], name, 4, 1))


@pytest.mark.parametrize("name", get_args(Corruption))
def test_an_image_s_place_and_the_seed_decide_and_not_its_portion(pixels, name):
    whole = corrupt(pixels, name, 3, 7)
    parts = ChangedPixels(pixels, lambda some, first: corrupt(some, name, 3, 7, first))
    np.testing.assert_array_equal(whole, np.concatenate([parts[0:5], parts[5:8]]))
    assert (parts.shape, parts.dtype, len(parts)) == (pixels.shape, np.uint8, 8)
    other = corrupt(pixels, name, 3, 8)
    assert np.array_equal(whole, other) == (name not in [*BOTH_WAYS, "noise"])


def test_lengths_follow_the_image_s_side():
    """What a severity does to a large image is, seen small, what it does to the small one."""
    large = radiographs(256, 4)
    small = large.reshape(4, 64, 4, 64, 4, 1).mean(axis=(2, 4)).round().astype(np.uint8)
    for name in ("blur", "zoom", "stretch", "rotation", "margins"):
        reduced = corrupt(large, name, 5, 1).reshape(4, 64, 4, 64, 4, 1).mean(axis=(2, 4))
        by_size = distance(reduced, corrupt(small, name, 5, 1))
        assert (by_size < 0.1 * distance(small, corrupt(small, name, 5, 1))).all(), name


def test_what_each_change_does_to_a_simple_image():
    grey = np.full((4, 40, 40, 1), 100, np.uint8)
    framed = corrupt(grey, "margins", 5, 1)
    assert (framed[:, :6] == 0).all()
    assert (framed[:, 6:-6, 6:-6] == 100).all()
    mild, strong = (
        corrupt(np.repeat(grey[:1], 20, axis=0), "gamma", severity, 1).mean((1, 2, 3)) for severity in (2, 4)
    )
    assert set(strong) == {round(255 * (100 / 255) ** 2), round(255 * (100 / 255) ** 0.5)}  # both ways
    np.testing.assert_array_equal(mild > 100, strong > 100)  # an image goes one way at all severities
    for unmoved in ("contrast", "blur", "downsampling", "stretch"):
        np.testing.assert_array_equal(corrupt(grey, unmoved, 5, 1), grey)
    noisy = corrupt(grey, "noise", 5, 1).astype(float) - 100
    assert abs(noisy.std() - 25) < 1
    assert not np.array_equal(noisy[0], noisy[1])
