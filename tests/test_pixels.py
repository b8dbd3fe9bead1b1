"""One function from file to pixels, and a mapped file of pixels that is whole or absent."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from conftest import draw_archive, save_image
from pneumolib.data import pixels as module
from pneumolib.data.manifest import read_manifest
from pneumolib.data.pixels import equalize, load_image, read_images, subset
from pneumolib.data.split import split_manifest
from pneumolib.errors import ImageFileError
from pneumolib.params import DataParams, ImageParams, SplitParams

GREY, RGB = ImageParams(size_px=32, channels=1), ImageParams(size_px=32, channels=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    manifest = read_manifest(DataParams(root=str(draw_archive(root / "archive"))), cache_dir=root / "manifest")
    return manifest, split_manifest(manifest.table, SplitParams(validation_fraction=0.25))


@pytest.mark.parametrize("params", [GREY, RGB])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "1"])
def test_every_mode_gives_uint8_of_the_asked_shape(tmp_path, params, mode):
    grey = Image.fromarray(np.full((50, 70), 200, np.uint8))
    file = tmp_path / ("x.jpeg" if mode in ("L", "RGB", "CMYK") else "x.png")
    grey.convert("RGB").convert(mode).save(file)
    pixels = load_image(file, params)
    assert (pixels.shape, pixels.dtype) == ((32, 32, params.channels), np.uint8)
    assert abs(int(pixels.mean()) - 200) <= 4
    np.testing.assert_array_equal(pixels, load_image(file.read_bytes(), params))


def test_resizing_is_antialiased(tmp_path):
    """A pattern finer than the output must average to grey, in files small and large (which decode at reduced size)."""
    for side in (128, 1024):
        stripes = np.tile([0, 255], (side, side // 2))
        pixels = load_image(save_image(tmp_path / f"{side}.jpeg", stripes, quality=95), GREY)
        assert pixels.std() < 12
        assert abs(pixels.mean() - 127) < 4


# --- the mapped file


def test_pixels_and_table_go_together(prepared, tmp_path, monkeypatch):
    manifest, split = prepared
    paths = manifest.table.set_index("image_id").path
    for part in ("train", "val", "test"):
        images = read_images(manifest, split, part, GREY, tmp_path / "pixels")
        assert set(images.table.image_id) == set(split.image_id[split.split == part])
        for pixels, path in zip(images.pixels, paths[images.table.image_id], strict=True):
            np.testing.assert_array_equal(pixels, load_image(manifest.root / path, GREY))
    few = subset(images, images.table.image_id[[4, 0]])
    np.testing.assert_array_equal(few.pixels, images.pixels[[4, 0]])
    assert few.table.image_id.tolist() == images.table.image_id[[4, 0]].tolist()
    assert not few.key  # which are no whole file
    monkeypatch.setattr(module, "load_image", lambda *_: pytest.fail("decoded again"))
    again = read_images(*prepared, "test", GREY, tmp_path / "pixels")
    assert again.key == images.key
    with pytest.raises(KeyError, match="train/"):
        read_images(manifest, split.assign(image_id=split.image_id + "x"), "val", GREY, tmp_path)


def test_every_image_parameter_and_every_change_of_a_file_has_a_cache_of_its_own(prepared, tmp_path):
    manifest, split = prepared
    changes = {"channels": 3, "equalize": "hist", "crop_border": 0.2, "reencode_quality": 10, "fit": "crop"}
    ways = [GREY, *(GREY.model_copy(update={name: value}) for name, value in changes.items())]
    seen = [read_images(manifest, split, "val", way, tmp_path / "pixels") for way in ways]
    assert all(not np.array_equal(seen[0].pixels, other.pixels) for other in seen[1:])
    file = manifest.root / manifest.table.set_index("image_id").path[split.image_id[split.split == "val"].iloc[0]]
    whole = file.read_bytes()
    save_image(file, np.tile(np.arange(48) + 77, (40, 1)))
    changed = read_manifest(DataParams(root=str(manifest.root)), cache_dir=tmp_path / "manifest")
    seen.append(read_images(changed, split, "val", GREY, tmp_path / "pixels"))
    file.write_bytes(whole)
    assert seen[-1].pixels[0].mean() == 100
    assert len({images.key for images in seen}) == len(list((tmp_path / "pixels").glob("*.npy"))) == len(seen)


def test_a_build_that_fails_leaves_nothing_and_names_the_file(prepared, tmp_path):
    manifest, split = prepared
    last = manifest.root / manifest.table.set_index("image_id").path[split.image_id[split.split == "train"].iloc[-1]]
    whole = last.read_bytes()
    last.write_bytes(b"gone wrong since")
    with pytest.raises(ImageFileError, match=f"{last.name}: not a JPEG, PNG or DICOM image"):
        read_images(manifest, split, "train", GREY, tmp_path / "pixels")
    assert [file.suffix for file in (tmp_path / "pixels").iterdir()] == [".lock"]
    last.write_bytes(whole)
    assert len(read_images(manifest, split, "train", GREY, tmp_path / "pixels")) > 0


def test_a_damaged_file_is_made_anew(prepared, tmp_path, capsys):
    whole = np.array(read_images(*prepared, "val", GREY, tmp_path / "pixels").pixels)
    (file,) = (tmp_path / "pixels").glob("*.npy")
    raw = file.read_bytes()
    for damaged in (raw[:-1], raw + b"x", b""):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(read_images(*prepared, "val", GREY, tmp_path / "pixels").pixels, whole)
        assert f"{file} is damaged; it is made anew" in capsys.readouterr().out
        assert file.read_bytes() == raw


def test_a_killed_build_leaves_nothing_and_two_processes_build_one_cache(prepared, tmp_path):
    manifest, split = prepared
    split.to_pickle(tmp_path / "split.pkl")
    program = textwrap.dedent("""
        import os, signal, sys, pandas as pd, pathlib
        from pneumolib.data import manifest, pixels
        from pneumolib.params import DataParams, ImageParams
        root, folder, deadly = *map(pathlib.Path, sys.argv[1:3]), int(sys.argv[3])
        pixels._AHEAD, decoded, load = 4, [], pixels.load_image
        def counted(*a):
            decoded.append(1)
            if len(decoded) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return load(*a)
        pixels.load_image = counted
        found = pixels.read_images(manifest.read_manifest(DataParams(root=str(root)), folder / "manifest"),
            pd.read_pickle(folder / "split.pkl"), "train", ImageParams(size_px=32), folder / "both")
        print(len(decoded), int(found.pixels.sum()))
    """)

    def start(deadly: int) -> subprocess.Popen:
        command = [sys.executable, "-c", program, str(manifest.root), str(tmp_path), str(deadly)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start(30)
    assert killed.communicate(timeout=120) == ("", None)
    assert killed.returncode == -9
    assert sorted(file.suffixes[-2:] for file in (tmp_path / "both").iterdir())[-1] == [".tmp", ".npy"]
    pair = [start(0) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in pair]
    alone = read_images(manifest, split, "train", GREY, tmp_path / "alone")
    assert [sums for _, sums in said] == [str(int(alone.pixels.sum()))] * 2
    assert sorted(int(n) for n, _ in said) == [0, len(alone)]
    assert sorted(file.suffix for file in (tmp_path / "both").iterdir()) == [".lock", ".npy"]


# --- mitigations and equalisation


def test_stretch_pad_and_crop(tmp_path):
    file = save_image(tmp_path / "x.png", np.tile(np.linspace(0, 255, 80), (40, 1)))  # dark on the left, 2 to 1
    seen = {fit: load_image(file, GREY.model_copy(update={"fit": fit}))[..., 0] for fit in ("stretch", "pad", "crop")}
    assert (seen["stretch"][:, 0] < 10).all()
    assert (seen["stretch"][:, -1] > 245).all()
    assert not seen["pad"][[*range(7), *range(-7, 0)]].any()
    np.testing.assert_allclose(seen["pad"][16], seen["stretch"][16], atol=3)
    # The middle half of the width is left, and nothing of the height is lost.
    np.testing.assert_allclose(seen["crop"][16, [0, -1]], [64, 191], atol=6)
    noise = np.random.default_rng(0).integers(0, 255, (81, 48)).astype(np.uint8)
    square = np.asarray(module.prepare(Image.fromarray(noise), ImageParams(fit="crop")))
    np.testing.assert_array_equal(square, noise[16:64])  # cut, not resampled


def test_equalisation_makes_the_cumulative_curve_straight():
    rng = np.random.default_rng(0)
    flat = rng.normal(90, 12, (64, 64, 1)).clip(0, 255).astype(np.uint8)
    spread = equalize(flat, ImageParams(equalize="hist"))
    curve = np.cumsum(np.bincount(spread.reshape(-1), minlength=256)) / spread.size
    assert np.abs(curve - np.linspace(0, 1, 256)).max() < 0.05
    clahe = equalize(flat, ImageParams(equalize="clahe"))
    assert flat.std() < clahe.std() < 1.1 * spread.std()
    assert equalize(flat, ImageParams(equalize="clahe", clahe_clip_limit=0.05)).std() > clahe.std()
    np.testing.assert_array_equal(equalize(flat, ImageParams()), flat)
    even = np.full((32, 32, 3), 77, np.uint8)
    for way in ("hist", "clahe"):  # nothing to spread, and no crash; colour becomes grey
        assert equalize(even, ImageParams(equalize=way)).shape == even.shape
        coloured = equalize(rng.integers(0, 255, (32, 32, 3), np.uint8), ImageParams(equalize=way))
        assert (coloured == coloured[..., :1]).all()
