"""Pixels to batches: labels stay with their pixels, order and augmentation are functions of (seed, epoch, image)."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pneumolib.data import augment
from pneumolib.data.augment import MARGINS, N_DRAWS, NOISE, augment_batch
from pneumolib.data.batches import eval_dataset, steps_per_epoch, train_dataset, view_dataset
from pneumolib.data.pixels import ImageSet
from pneumolib.params import AugmentParams

NONE = AugmentParams()
STRONG = AugmentParams(
    flip=True, rotation_deg=15.0, shear_deg=10.0, shift_fraction=0.1, zoom_fraction=0.2, stretch_factor=1.4,
    margin_fraction=0.2, gamma_factor=1.5, contrast_factor=1.5, brightness_fraction=0.1, sharpness=0.8, noise_sd=10.0,
)  # fmt: skip


@pytest.fixture
def coded():
    """37 images whose first pixel is their own number, and whose label is its last bit."""
    pixels = np.arange(37, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    names = [f"image{n:02d}" for n in range(37)]
    table = pd.DataFrame({"image_id": names, "split": "train", "label": np.arange(37) % 2, "group_id": names})
    return ImageSet(table, pixels)


def numbers(dataset) -> np.ndarray:
    return np.concatenate([x.numpy()[:, 0, 0, 0] for x, *_ in dataset])


def test_batches_are_full_and_an_epoch_holds_no_image_twice(coded):
    batches = list(train_dataset(coded, NONE, 8, seed=1, epochs=6, weights={0: 2.0, 1: 0.5}))
    assert [len(x) for x, *_ in batches] == [8] * 6 * steps_per_epoch(coded, 8)
    for x, y, w in batches:
        assert (x.dtype, y.dtype, w.dtype) == (tf.uint8, tf.float32, tf.float32)
        np.testing.assert_array_equal(x.numpy()[:, 0, 0, 0] % 2, y.numpy()[:, 0])
        np.testing.assert_array_equal(w.numpy(), np.where(y.numpy() == 1, 0.5, 2.0))
    epochs = [frozenset(epoch) for epoch in numbers(batches).reshape(6, 32).tolist()]
    assert {len(epoch) for epoch in epochs} == {32}
    assert len(set(epochs)) >= 5  # other images are left out each time
    with pytest.raises(ValueError, match=r"training\.batch_size 64 is larger than the training split \(37 images\)"):
        train_dataset(coded, NONE, 64, seed=1, epochs=1)


def test_order_depends_on_seed_and_epoch_alone(coded):
    tf.random.set_seed(1)
    two_epochs = numbers(train_dataset(coded, NONE, 8, seed=1, epochs=2))
    tf.random.set_seed(2)
    np.testing.assert_array_equal(two_epochs, numbers(train_dataset(coded, NONE, 8, seed=1, epochs=2)))
    later = train_dataset(coded, NONE, 8, seed=1, epochs=2, start_epoch=1)
    np.testing.assert_array_equal(two_epochs[32:], numbers(later))
    assert (two_epochs[:32] != two_epochs[32:]).any()
    assert (two_epochs[:32] != numbers(train_dataset(coded, NONE, 8, seed=2, epochs=1))).any()
    # A change of the order would give everybody other networks under the same seed; it must not go unseen.
    assert two_epochs[:8].tolist() == [19, 11, 12, 15, 8, 17, 0, 3]


def test_what_augmentation_does_to_an_image_depends_on_seed_epoch_and_place_alone(coded):
    mild = AugmentParams(flip=True, brightness_fraction=0.3, margin_fraction=0.2, crop_area=[0.3, 1.5])

    def by_number(batch_size):
        plain = numbers(train_dataset(coded, NONE, batch_size, seed=5, epochs=3, start_epoch=2))
        changed = train_dataset(coded, mild, batch_size, seed=5, epochs=3, start_epoch=2)
        return dict(zip(plain, np.concatenate([x.numpy() for x, *_ in changed]), strict=True))

    small, large = by_number(4), by_number(12)
    assert len(small.keys() & large.keys()) >= 32
    for number in small.keys() & large.keys():
        np.testing.assert_array_equal(small[number], large[number])


def test_a_mapped_file_gives_the_batches_of_the_array(coded, tmp_path):
    np.save(tmp_path / "pixels.npy", coded.pixels)
    mild = AugmentParams(gamma_factor=1.5)
    mapped = ImageSet(coded.table, np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    for make in (
        lambda images: train_dataset(images, mild, 8, seed=1, epochs=2),
        lambda images: view_dataset(images, mild, 16, 1, 2),
        lambda images: eval_dataset(images.pixels, 16),
    ):
        for one, other in zip(make(coded), make(mapped), strict=True):
            tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_processes_share_out_the_batches_of_one(coded):
    changed = AugmentParams(brightness_fraction=0.3)
    whole = [x.numpy() for x, *_ in train_dataset(coded, changed, 8, seed=1, epochs=2)]
    parts = zip(*(train_dataset(coded, changed, 8, 1, 2, process=(p, 2)) for p in (0, 1)), strict=True)
    for together, ((first, *_), (second, *_)) in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(together, np.concatenate([first, second]))
    with pytest.raises(ValueError, match=r"training\.batch_size 8 is no multiple of the 3 processes"):
        train_dataset(coded, NONE, 8, 1, 1, process=(0, 3))


@pytest.mark.parametrize("batch_size", [1, 8, 37, 64])
def test_evaluation_keeps_every_image_once_in_order_and_pads(coded, batch_size):
    batches = [x.numpy() for x in eval_dataset(coded.pixels, batch_size)]
    assert {len(x) for x in batches} == {batch_size}
    everything = np.concatenate(batches)[:, 0, 0, 0]
    np.testing.assert_array_equal(everything[:37], np.arange(37))
    assert not everything[37:].any()


def test_each_epoch_takes_one_view_of_each_image_s_features(coded):
    features = np.stack([np.arange(37) + 100 * n for n in range(3)], axis=1)[..., None].astype(np.float32)
    batches = list(train_dataset(ImageSet(coded.table, features), None, 8, seed=1, epochs=2))
    for found, wanted, _ in batches:
        np.testing.assert_array_equal(found.numpy()[:, 0] % 100 % 2, wanted.numpy()[:, 0])
    epochs = np.concatenate([x.numpy()[:, 0] for x, *_ in batches]).reshape(2, 32)
    assert {int(v) // 100 for v in epochs[0]} == {0, 1, 2}
    assert len({int(v) % 100 for v in epochs[0]}) == 32
    assert epochs[0].tolist() != epochs[1].tolist()


# --- augmentation


def augmented(images, params: AugmentParams, *draws: tuple) -> np.ndarray:
    """`draws`: a column, and one value an image or one for all; elsewhere 0.5, at which every symmetric draw is zero."""
    all_draws = np.full((len(images), N_DRAWS), 0.5, np.float32)
    for column, values in draws:
        all_draws[:, column] = values
    return augment_batch(tf.constant(images, tf.uint8), all_draws, params).numpy().astype(int)


def places(side: int = 41) -> np.ndarray:
    """Images whose grey value is the row, then the column: what is read is the place it is read from."""
    rows = np.broadcast_to(np.arange(side)[:, None, None], (side, side, 1))
    return np.stack([rows, rows.transpose(1, 0, 2)])


@pytest.mark.parametrize("channels", [1, 3])
def test_every_op_changes_an_image_and_gives_the_same_inside_map(channels):
    images = tf.random.stateless_uniform([5, 24, 20, channels], [1, 2], 0, 256, tf.int32)
    images = tf.cast(images, tf.uint8)
    draws = tf.random.stateless_uniform([5, N_DRAWS], [3, 4])
    changed = [augment_batch(images, draws, STRONG)]
    mapped = tf.data.Dataset.from_tensors((images, draws)).map(lambda x, d: augment_batch(x, d, STRONG))
    np.testing.assert_array_equal(next(iter(mapped)), changed[0])
    for name, value in (STRONG.model_dump(exclude={"crop_area", "crop_aspect"}) | {"crop_area": [0.3, 1.5]}).items():
        changed.append(augment_batch(images, draws, AugmentParams(**{name: value})))
        assert (changed[-1].numpy() != images.numpy()).any(), name
    assert {(x.dtype, x.shape) for x in changed} == {(tf.uint8, images.shape)}


def test_middle_draws_change_nothing_and_a_flip_mirrors_left_and_right():
    images = np.arange(2 * 16 * 12).reshape(2, 16, 12, 1) % 251
    np.testing.assert_array_equal(augmented(images, STRONG, (NOISE, 0), (MARGINS, 0)), images)
    np.testing.assert_array_equal(augmented(images, AugmentParams(flip=True), (augment.FLIP, 0.1)), images[:, :, ::-1])


def test_shear_turns_the_level_axis_and_leaves_the_upright_one():
    read = augmented(places(), AugmentParams(shear_deg=20.0), (augment.SHEAR, 0.99999))[..., 0]
    offset, angle = np.arange(-10, 11), np.deg2rad(20)
    np.testing.assert_allclose(read[0, 20, 10:31], 20 + offset * np.sin(angle), atol=1)
    np.testing.assert_allclose(read[1, 20, 10:31], 20 + offset * np.cos(angle), atol=1)
    np.testing.assert_array_equal(read[:, 10:31, 20], [20 + offset, np.full(21, 20)])


def test_stretch_and_a_quarter_turn_keep_to_the_axes_of_the_image():
    """A factor of 1.44 at its end: 1.2 times as much of the width in view, and the height divided by as much."""
    params = AugmentParams(stretch_factor=1.44, rotation_deg=90.0)
    read = augmented(places(), params, (augment.STRETCH, 1), (augment.ROTATION, 1))[..., 0]
    np.testing.assert_allclose(read[0, 20, 10:31], 20 + np.arange(-10, 11) / 1.2, atol=1)
    np.testing.assert_allclose(read[1, 10:31, 20][::-1], 20 + np.arange(-10, 11) * 1.2, atol=1)


AREAS = st.floats(0.05, 4)


@settings(max_examples=40, deadline=None)
@given(st.tuples(AREAS, AREAS).map(sorted), st.floats(0.3, 1), st.floats(1, 3), st.integers(0, 99))
@example([0.35, 1.4], 3 / 4, 4 / 3, 1)
@example([1.0, 1.25], 1.0, 1.0, 38)
def test_a_crop_shows_its_share_of_the_film_and_lies_within_it_or_around_it(area, narrow, wide, seed):
    side = 201
    params = AugmentParams(crop_area=area, crop_aspect=[narrow, wide])
    draws = tf.random.stateless_uniform([8, N_DRAWS], [seed, 1])
    asked = area[0] + draws.numpy()[:, augment.ZOOM] * (area[1] - area[0])
    white, y, x = (
        augment_batch(tf.constant(np.repeat(one[None], 8, axis=0), tf.uint8), draws, params).numpy()[..., 0].astype(int)
        for one in (np.full((side, side, 1), 255), *places(side))
    )
    assert ((white > 250).all(axis=(1, 2)) | (asked > 1)).all()  # nothing but film
    for n in np.flatnonzero(asked <= 1):  # corners are places of the film, so far apart as the share says
        height, width = np.ptp(y[n]) / (side - 1), np.ptp(x[n]) / (side - 1)
        assert height * width == pytest.approx(asked[n], abs=0.02)
        assert narrow - 0.05 <= width / height <= wide + 0.05
    for n in np.flatnonzero(asked > 1):  # the whole film, black around it
        rows, columns = np.flatnonzero(white[n].max(axis=1) > 250), np.flatnonzero(white[n].max(axis=0) > 250)
        assert (len(rows) / side) * (len(columns) / side) == pytest.approx(1 / asked[n], abs=0.02)
        # Of a corner, which two edges share with the black around it, both shares count.
        assert (white[n][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 250 * 250 / 255 - 1).all()


def test_crops_reach_every_border_and_without_a_crop_nothing_moves():
    shift = [(column, end) for column, end in ((augment.SHIFT_X, 1), (augment.SHIFT_Y, 0))]
    read = augmented(places(), AugmentParams(crop_area=[0.25, 0.25], crop_aspect=[1, 1]), *shift)[..., 0]
    np.testing.assert_allclose(read[0, :, 0], np.arange(41) / 2, atol=1)  # the upper half
    np.testing.assert_allclose(read[1, 0], 20 + np.arange(41) / 2, atol=1)  # the right half
    np.testing.assert_array_equal(augmented(places(), AugmentParams(crop_aspect=[0.5, 2]), *shift), places())


def test_margins_go_black_at_each_side_by_its_own_draw():
    white = np.full([1, 20, 20, 3], 255)
    seen = augmented(white, AugmentParams(margin_fraction=0.4), (MARGINS, (0, 0.25, 0.5, 1)))[0] == 255
    expected = np.zeros((20, 20, 3), bool)
    expected[:18, 4:12] = True  # nothing above, 0.1 below, 0.2 left, 0.4 right
    np.testing.assert_array_equal(seen, expected)


def test_brightness_moves_grey_values_and_sharpness_blurs_or_sharpens():
    edge = np.full((2, 8, 8, 1), 50)
    edge[:, :, 4:] = 150
    darker, brighter = augmented(edge, AugmentParams(brightness_fraction=0.2), (augment.BRIGHTNESS, (0, 0.99999)))
    assert (darker.min(), darker.max(), brighter.min(), brighter.max()) == (0, 99, 101, 201)
    sharpened, blurred = augmented(edge, AugmentParams(sharpness=1.0), (augment.SHARPNESS, (0, 1)))[:, 3, :, 0]
    np.testing.assert_array_equal(blurred, [50, 50, 50, 75, 125, 150, 150, 150])
    np.testing.assert_array_equal(sharpened, [50, 50, 50, 25, 175, 150, 150, 150])


def test_noise_has_the_stated_deviation_and_differs_by_image():
    draws = (NOISE, (0, 0.5, 1)), (augment.NOISE_PLACE, (0.1, 0.2, 0.9))
    changed = augmented(np.full([3, 64, 64, 3], 128), AugmentParams(noise_sd=10.0), *draws)
    np.testing.assert_allclose(changed.std(axis=(1, 2, 3)), [0, 5, 10], atol=0.5)
    np.testing.assert_array_equal(changed[..., 0], changed[..., 2])  # a film has no colours
    assert abs(np.corrcoef(changed[1, ..., 0].ravel(), changed[2, ..., 0].ravel())[0, 1]) < 0.05
