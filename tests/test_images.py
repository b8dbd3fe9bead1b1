"""One function from file to pixels, and a cache that is whole or not there."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from conftest import save_image
from pneumolib.data import images as module
from pneumolib.data.decode import decode
from pneumolib.data.images import as_jpeg, equalize, load_image, prepare, read_images
from pneumolib.data.manifest import read_manifest
from pneumolib.data.split import split_manifest
from pneumolib.errors import ImageFileError
from pneumolib.params import DataParams, ImageParams, SplitParams

GREY, RGB = ImageParams(size_px=32, channels=1), ImageParams(size_px=32, channels=3)


@pytest.fixture
def prepared(archive, tmp_path):
    manifest = read_manifest(DataParams(root=str(archive)), cache_dir=tmp_path / "manifest")
    return manifest, split_manifest(manifest.table, SplitParams(validation_fraction=0.25))


@pytest.mark.parametrize("params", [GREY, RGB])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "1"])
def test_every_mode_gives_uint8_of_the_asked_shape(tmp_path, params, mode):
    grey = Image.fromarray(np.full((50, 70), 200, np.uint8))
    file = tmp_path / ("x.jpeg" if mode in ("L", "RGB", "CMYK") else "x.png")
    grey.convert("RGB").convert(mode).save(file)
    pixels = load_image(file, params)
    assert pixels.shape == (32, 32, params.channels)
    assert pixels.dtype == np.uint8
    assert abs(int(pixels.mean()) - 200) <= 4


def test_16_bit_grey_is_scaled_not_cut(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels = load_image(tmp_path / "x.png", GREY)
    assert 100 < pixels.mean() < 150
    assert pixels.min() < 10


def test_bytes_and_path_agree(archive):
    file = next((archive / "train/NORMAL").iterdir())
    np.testing.assert_array_equal(load_image(file, GREY), load_image(file.read_bytes(), GREY))


def test_resizing_is_antialiased(tmp_path):
    """A pattern finer than the output must average to grey, in files small and large (which decode at reduced size)."""
    for side in (128, 1024):
        stripes = np.tile([0, 255], (side, side // 2))
        pixels = load_image(save_image(tmp_path / f"{side}.jpeg", stripes, quality=95), GREY)
        assert pixels.std() < 12
        assert abs(pixels.mean() - 127) < 4


def test_pixels_and_table_go_together(prepared, tmp_path):
    manifest, split = prepared
    for part in ("train", "val", "test"):
        images = read_images(manifest, split, part, GREY, tmp_path / "pixels")
        assert set(images.table.image_id) == set(split.image_id[split.split == part])
        bright = images.pixels.mean(axis=(1, 2, 3)) > 120
        np.testing.assert_array_equal(bright, images.table.label == 1)
        paths = manifest.table.set_index("image_id").path[images.table.image_id]
        for pixels, path in zip(images.pixels, paths, strict=True):
            np.testing.assert_array_equal(pixels, load_image(manifest.root / path, GREY))


def test_second_call_decodes_nothing(prepared, tmp_path, monkeypatch):
    first = read_images(*prepared, "val", GREY, tmp_path / "pixels")
    monkeypatch.setattr(module, "load_image", lambda *_: pytest.fail("decoded again"))
    again = read_images(*prepared, "val", GREY, tmp_path / "pixels")
    np.testing.assert_array_equal(first.pixels, again.pixels)


def test_cache_depends_on_content_and_parameters(prepared, tmp_path):
    manifest, split = prepared
    read_images(manifest, split, "val", GREY, tmp_path / "pixels")
    read_images(manifest, split, "val", RGB, tmp_path / "pixels")
    file = manifest.root / manifest.table.set_index("image_id").path[split.image_id[split.split == "val"].iloc[0]]
    save_image(file, np.full((40, 48), 77))
    changed = read_manifest(DataParams(root=str(manifest.root)), cache_dir=tmp_path / "manifest")
    images = read_images(changed, split, "val", GREY, tmp_path / "pixels")
    assert images.pixels[0].mean() == 77
    assert len(list((tmp_path / "pixels").glob("*.npy"))) == 3


def test_a_build_that_fails_leaves_nothing(prepared, tmp_path, monkeypatch):
    def break_down(path, params, count=[]):  # noqa: B006 - the list counts the calls
        count.append(path)
        if len(count) > 3:
            raise OSError("disk gone")
        return load_image(path, params)

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_image", break_down)
        with pytest.raises(OSError, match="disk gone"):
            read_images(*prepared, "train", GREY, tmp_path / "pixels")
    assert not list((tmp_path / "pixels").glob("*.npy"))
    assert not list((tmp_path / "pixels").glob("*.tmp"))
    assert len(read_images(*prepared, "train", GREY, tmp_path / "pixels")) > 0


def test_two_processes_build_one_cache(prepared, tmp_path):
    manifest, split = prepared
    split.to_pickle(tmp_path / "split.pkl")
    program = textwrap.dedent("""
        import sys, pandas as pd, pathlib
        from pneumolib.data import images, manifest
        from pneumolib.params import DataParams, ImageParams
        root, folder = map(pathlib.Path, sys.argv[1:])
        decoded = []
        load = images.load_image
        images.load_image = lambda *a: decoded.append(1) or load(*a)
        found = images.read_images(manifest.read_manifest(DataParams(root=str(root)), folder / "manifest"),
            pd.read_pickle(folder / "split.pkl"), "train", ImageParams(size_px=32), folder / "both")
        print(len(decoded), int(found.pixels.sum()))
    """)
    command = [sys.executable, "-c", program, str(manifest.root), str(tmp_path)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in pair]
    alone = read_images(manifest, split, "train", GREY, tmp_path / "alone")
    assert [sums for _, sums in said] == [str(int(alone.pixels.sum()))] * 2
    assert sorted(int(n) for n, _ in said) == [0, len(alone)]


def test_an_image_the_manifest_does_not_hold(prepared, tmp_path):
    manifest, split = prepared
    foreign = split.assign(image_id=split.image_id + "x")
    with pytest.raises(KeyError, match="not in the manifest"):
        read_images(manifest, foreign, "val", GREY, tmp_path)


# --- cures and equalisation


def framed(width=80, height=48, frame=8):
    """A bright picture in a black frame: what is cut off and what is added can be told by eye and by number."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[frame:-frame, frame:-frame] = 200
    return pixels


def test_stretch_pad_and_crop(tmp_path):
    file = save_image(tmp_path / "x.png", np.tile(np.linspace(0, 255, 80), (40, 1)))  # dark on the left, 2 to 1
    seen = {fit: load_image(file, GREY.model_copy(update={"fit": fit}))[..., 0] for fit in ("stretch", "pad", "crop")}
    assert (seen["stretch"][:, 0] < 10).all()
    assert (seen["stretch"][:, -1] > 245).all()
    assert (seen["pad"][:7] == 0).all()
    assert (seen["pad"][-7:] == 0).all()
    np.testing.assert_allclose(seen["pad"][16], seen["stretch"][16], atol=3)
    # The middle half of the width is left, and nothing of the height is lost.
    assert abs(int(seen["crop"][16, 0]) - 64) < 6
    assert abs(int(seen["crop"][16, -1]) - 191) < 6
    upright = save_image(tmp_path / "y.png", np.tile(np.linspace(0, 255, 80), (40, 1)).T)
    turned = load_image(upright, GREY.model_copy(update={"fit": "crop"}))[..., 0]
    np.testing.assert_array_equal(turned, seen["crop"].T)


@pytest.mark.parametrize("size", [(81, 48), (80, 49), (41, 97)])
def test_a_cropped_square_is_cut_and_not_resampled(size):
    pixels = np.random.default_rng(0).integers(0, 255, size[::-1]).astype(np.uint8)
    square = np.asarray(prepare(Image.fromarray(pixels), ImageParams(fit="crop")))
    assert square.shape == (min(size), min(size))
    left, top = (size[0] - min(size)) // 2, (size[1] - min(size)) // 2
    np.testing.assert_array_equal(square, pixels[top : top + min(size), left : left + min(size)])


def test_the_border_is_cut_off(tmp_path):
    file = save_image(tmp_path / "x.png", framed(80, 80, 8))
    assert load_image(file, GREY).min() == 0
    assert load_image(file, GREY.model_copy(update={"crop_border": 0.1})).min() == 200


def test_saved_anew_all_files_carry_one_table(tmp_path):
    scene = np.random.default_rng(0).normal(128, 30, (96, 96)).clip(0, 255)
    files = [save_image(tmp_path / f"{q}.jpeg", scene, quality=q) for q in (95, 60)]
    own = [decode(file.read_bytes()) for file in files]
    anew = [decode(as_jpeg(decoded.image, 30)) for decoded in own]
    assert own[0].quantisation_sum < own[1].quantisation_sum < anew[0].quantisation_sum == anew[1].quantisation_sum
    cured = load_image(files[0], ImageParams(size_px=96, reencode_quality=30))
    np.testing.assert_array_equal(cured[..., 0], np.asarray(anew[0].image))  # at 96 px nothing is resized


def test_equalisation_makes_the_cumulative_curve_straight():
    rng = np.random.default_rng(0)
    flat = rng.normal(90, 12, (64, 64, 1)).clip(0, 255).astype(np.uint8)
    spread = equalize(flat, ImageParams(equalize="hist"))
    curve = np.cumsum(np.bincount(spread.reshape(-1), minlength=256)) / spread.size
    assert np.abs(curve - np.linspace(0, 1, 256)).max() < 0.05
    clahe = equalize(flat, ImageParams(equalize="clahe"))
    assert flat.std() < clahe.std() < 1.1 * spread.std()
    stronger = equalize(flat, ImageParams(equalize="clahe", clahe_clip_limit=0.05))
    assert stronger.std() > clahe.std()
    np.testing.assert_array_equal(equalize(flat, ImageParams()), flat)


@pytest.mark.parametrize("way", ["hist", "clahe"])
def test_equalised_images_are_uint8_grey_in_all_channels(archive, way):
    file = next((archive / "train/NORMAL").iterdir())
    one, three = (load_image(file, p.model_copy(update={"equalize": way})) for p in (GREY, RGB))
    assert one.shape == (32, 32, 1)
    assert three.shape == (32, 32, 3)
    assert one.dtype == three.dtype == np.uint8
    assert (three == three[..., :1]).all()
    np.testing.assert_allclose(one.astype(int), three[..., :1].astype(int), atol=12)
    even = np.full((32, 32, 1), 77, np.uint8)
    assert equalize(even, ImageParams(equalize=way)).shape == even.shape  # nothing to spread, and no crash


def test_every_image_parameter_has_a_cache_of_its_own(prepared, tmp_path):
    seen = [
        read_images(*prepared, "val", GREY.model_copy(update=change), tmp_path / "pixels").pixels.copy()
        for change in ({}, {"equalize": "hist"}, {"crop_border": 0.2}, {"reencode_quality": 10}, {"fit": "crop"})
    ]
    assert len(list((tmp_path / "pixels").glob("*.npy"))) == len(seen)
    assert all(not np.array_equal(seen[0], other) for other in seen[1:])


def test_a_broken_file_is_named_when_its_cache_is_built(prepared, tmp_path):
    manifest, split = prepared
    first = manifest.table.set_index("image_id").path[split.image_id[split.split == "val"].iloc[0]]
    (manifest.root / first).write_bytes(b"gone wrong since")
    with pytest.raises(ImageFileError, match=f"{first}: not a JPEG, PNG or DICOM image"):
        read_images(manifest, split, "val", GREY, tmp_path / "pixels")
