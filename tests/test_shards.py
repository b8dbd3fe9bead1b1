"""Pixels in TFRecord shards answer as an array does, are whole or not there, and take over above `image.memory_gb`."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from conftest import in_shards
from pneumolib.data import images as images_module
from pneumolib.data import shards as module
from pneumolib.data.images import read_images
from pneumolib.data.manifest import read_manifest
from pneumolib.data.shards import ShardError, missing_shards
from pneumolib.data.split import split_manifest
from pneumolib.data.tfrecord import read_records
from pneumolib.params import DataParams, ImageParams, SplitParams

GREY = ImageParams(size_px=32, channels=1)
SHARDS = GREY.model_copy(update={"memory_gb": 0.0})


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (37, 6, 5, 3), np.uint8)


@pytest.fixture
def prepared(archive, tmp_path):
    manifest = read_manifest(DataParams(root=str(archive)), cache_dir=tmp_path / "manifest")
    return manifest, split_manifest(manifest.table, SplitParams(validation_fraction=0.25))


@pytest.mark.parametrize("mixed", [True, False])
def test_shards_answer_as_the_array_does(pixels, tmp_path, monkeypatch, mixed):
    shards = in_shards(pixels, tmp_path, monkeypatch, mixed=mixed)
    assert (shards.shape, shards.dtype, shards.ndim, len(shards)) == (pixels.shape, pixels.dtype, 4, 37)
    assert len(shards.files()) == 8
    dark = pixels.mean(axis=(1, 2, 3)) < 127
    for rows in (0, -1, np.int64(5), slice(None), slice(30, 50), slice(3, 30, 7), [4, 36, 4], np.array([], int), dark):
        np.testing.assert_array_equal(shards[rows], pixels[rows])
    np.testing.assert_array_equal(shards.mean(axis=(1, 2, 3)), pixels.mean(axis=(1, 2, 3)))
    with pytest.raises(IndexError, match="rows 37 to 37 of 37 images"):
        shards[37]
    with pytest.raises(ValueError, match="mean of each image alone"):
        shards.mean(axis=(0, 1, 2))


def test_a_shard_of_training_is_a_fair_sample_of_a_sorted_table(pixels, tmp_path, monkeypatch):
    many = np.broadcast_to(pixels[:1], (500, *pixels.shape[1:]))
    shards = in_shards(many, tmp_path, monkeypatch, per_shard=50)
    found = [[int.from_bytes(r[:8], "little") for r in read_records(file)] for file in shards.files()]
    assert sorted(np.concatenate(found)) == list(range(500))
    assert [len(rows) for rows in found] == [50] * 10
    for rows in found:  # of the first 150 rows, which a sorted table gives to one class, each holds its share
        assert abs(sum(row < 150 for row in rows) - 15) <= 1
    in_order = in_shards(many, tmp_path / "in order", monkeypatch, per_shard=50, mixed=False)
    assert [int.from_bytes(r[:8], "little") for r in read_records(in_order.files()[1])] == list(range(50, 100))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 11])
def test_few_images_are_shards_too(pixels, tmp_path, monkeypatch, n):
    np.testing.assert_array_equal(in_shards(pixels[:n], tmp_path, monkeypatch)[:], pixels[:n])


def test_a_broken_shard_is_named_with_what_to_do(pixels, tmp_path, monkeypatch):
    shards = in_shards(pixels, tmp_path, monkeypatch)
    whole = shards.files()[2].read_bytes()
    shards.file(2).write_bytes(whole[:-3])
    said = (
        rf"00002-of-00008\.tfrecord: {len(whole) - 3} bytes, expected {len(whole)}; .*Delete the folder {shards.folder}"
    )
    with pytest.raises(ShardError, match=said):
        shards.files()
    with pytest.raises(ShardError, match=r"00002-of-00008\.tfrecord: .*Delete the folder"):
        shards[:]
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    shards.file(2).write_bytes(flipped)
    with pytest.raises(ShardError, match=r"00002-of-00008\.tfrecord: record 5: not as it was written"):
        shards[:]
    shards.file(2).unlink()
    with pytest.raises(ShardError, match=r"00002-of-00008\.tfrecord: is missing"):
        shards.files()


def test_the_size_of_a_part_decides_and_the_pixels_are_the_same(prepared, tmp_path, monkeypatch):
    n_bytes = {part: len(rows) * 32 * 32 for part, rows in prepared[1].groupby("split")}
    assert n_bytes["train"] > max(n_bytes["val"], n_bytes["test"])
    limit = (n_bytes["train"] - 1) / 1e9
    for part in ("train", "val", "test"):
        plain = read_images(*prepared, part, GREY, tmp_path / "plain")
        both = [
            read_images(*prepared, part, GREY.model_copy(update={"memory_gb": gb}), tmp_path / "p") for gb in (limit, 0)
        ]
        assert [isinstance(images.pixels, np.ndarray) for images in both] == [part != "train", False]
        for images in both:
            np.testing.assert_array_equal(images.pixels[:], plain.pixels)
            assert images.table.equals(plain.table)
        assert both[1].pixels.mixed == (part == "train")
        assert both[1].identity.tobytes().decode() == both[1].pixels.folder.name
    monkeypatch.setattr(images_module, "load_image", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(read_images(*prepared, "test", SHARDS, tmp_path / "p").pixels[:], plain.pixels)
    shard = both[1].pixels.file(0)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardError, match="Delete the folder"):
        read_images(*prepared, "test", SHARDS, tmp_path / "p")


def test_a_killed_build_looks_unfinished_and_two_processes_finish_it_together(prepared, tmp_path, monkeypatch):
    manifest, split = prepared
    split.to_pickle(tmp_path / "split.pkl")
    program = textwrap.dedent("""
        import os, signal, sys, pandas as pd, pathlib
        from pneumolib.data import images, manifest, shards
        from pneumolib.params import DataParams, ImageParams
        root, folder, deadly = *map(pathlib.Path, sys.argv[1:3]), int(sys.argv[3])
        shards.SHARD_BYTES, shards.PORTION, images.PORTION, decoded = 10_000, 4, 4, []
        load = images.load_image
        def counted(*a):
            decoded.append(1)
            if len(decoded) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return load(*a)
        images.load_image = counted
        found = images.read_images(manifest.read_manifest(DataParams(root=str(root)), folder / "manifest"),
            pd.read_pickle(folder / "split.pkl"), "train", ImageParams(size_px=32, memory_gb=0), folder / "both")
        print(len(decoded), int(found.pixels[:].sum()))
    """)

    def start(deadly: int) -> subprocess.Popen:
        command = [sys.executable, "-c", program, str(manifest.root), str(tmp_path), str(deadly)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start(30)
    assert killed.communicate(timeout=60) == ("", None)
    assert killed.returncode == -9
    (building,) = (p for p in (tmp_path / "both").iterdir() if p.is_dir())
    assert building.name.endswith(".building")
    left = len(list(building.glob("*.tfrecord")))
    assert left > 0
    pair = [start(0) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in pair]
    alone = read_images(manifest, split, "train", GREY, tmp_path / "alone")
    assert [sums for _, sums in said] == [str(int(alone.pixels.sum()))] * 2
    monkeypatch.setattr(module, "SHARD_BYTES", 10_000)
    (folder,) = (p for p in (tmp_path / "both").iterdir() if p.is_dir())
    shards = module.ShardedPixels(folder, alone.pixels.shape, mixed=True)
    assert sorted(int(n) for n, _ in said) == [0, len(alone) - left * shards.per_shard]
    assert missing_shards(shards, folder) == []
    assert {file.name for file in folder.iterdir()} == {file.name for file in shards.files()}
