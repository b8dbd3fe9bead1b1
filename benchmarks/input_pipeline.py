"""What the input costs: `make bench`. Ratios from one run on one machine; absolute figures say little elsewhere.

Part one reads the same files at one size by the pipeline (first epoch: decode and cache; later epochs: from the cache),
by `keras.utils.image_dataset_from_directory`, by the legacy ImageDataGenerator and by Pillow in one thread.
Part two trains the baseline for an epoch through the pipeline and from arrays in memory: the share that input costs.
The files are the full-size radiographs of ../shared/data/originals when they are there, drawn ones otherwise.
"""

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras.src.legacy.preprocessing.image import ImageDataGenerator  # gone from the public API, still shipped
from PIL import Image

from pneumolib.data import draw_dataset
from pneumolib.data.batches import steps_per_epoch, train_dataset
from pneumolib.data.layout import CLASSES, identify
from pneumolib.data.manifest import Manifest, describe_file
from pneumolib.data.pixels import ImageSet, read_images
from pneumolib.learning.devices import start
from pneumolib.learning.fitting import compile_model
from pneumolib.learning.networks import build_model
from pneumolib.params import AugmentParams, ImageParams, ModelParams, RunParams

ORIGINALS = Path(__file__).resolve().parents[2] / "shared/data/originals/train"
BATCH, LATER_EPOCHS = 32, 5
AUGMENT = AugmentParams(
    flip=True, rotation_deg=10.0, shift_fraction=0.06, zoom_fraction=0.1, gamma_factor=1.8, contrast_factor=1.6,
    brightness_fraction=0.15,
)  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, or what the call itself returns as its time."""
    began = time.perf_counter()
    own = work()
    return own if isinstance(own, float) else time.perf_counter() - began


def exhaust(items: Iterable) -> None:
    """Go through everything."""
    for _ in items:
        pass


def find_files(scratch: Path) -> Path:
    """A folder with NORMAL/ and PNEUMONIA/."""
    return ORIGINALS if ORIGINALS.is_dir() else draw_dataset(scratch / "drawn") / "train"


def manifest_of(folder: Path) -> Manifest:
    """A manifest of one split folder; the benchmark needs neither validation nor test."""
    rows = []
    for name, label in CLASSES.items():
        for file in sorted((folder / name).iterdir()):
            kind, group = identify(name, file.stem)
            rows.append({"image_id": f"{name}/{file.stem}", "path": f"{name}/{file.name}", "label": label, "kind": kind,
                         "group_id": group, "source_split": "train", **describe_file(file)})  # fmt: skip
    return Manifest(pd.DataFrame(rows), pd.DataFrame(columns=["path", "reason"]), folder, synthetic=False)


def readers(manifest: Manifest, image: ImageParams, scratch: Path) -> dict[str, Callable[[], object]]:
    """Ways to go once through all files: functions that return their own seconds, or None to be timed whole."""
    size, folder = (image.size_px, image.size_px), manifest.root
    split = manifest.table.assign(split="train")[["image_id", "split", "label", "kind", "group_id"]]
    cached = read_images(manifest, split, "train", image, scratch / "warm")

    def pipeline_first():
        shutil.rmtree(scratch / "cold", ignore_errors=True)
        images = read_images(manifest, split, "train", image, scratch / "cold")
        exhaust(train_dataset(images, AugmentParams(), BATCH, seed=1, epochs=1))

    def pipeline_later(augment: AugmentParams) -> Callable[[], object]:
        """Five epochs of one data set, as a training goes through it; the first, which builds the graph, untimed."""

        def five_epochs():
            batches = iter(train_dataset(cached, augment, BATCH, seed=1, epochs=1 + LATER_EPOCHS))
            exhaust(itertools.islice(batches, steps_per_epoch(cached, BATCH)))
            return seconds(lambda: exhaust(batches)) / LATER_EPOCHS

        return five_epochs

    def keras_directory():
        exhaust(
            keras.utils.image_dataset_from_directory(
                folder, color_mode="grayscale", image_size=size, batch_size=BATCH, verbose=False
            )
        )

    def generator():
        flow = ImageDataGenerator().flow_from_directory(
            folder, target_size=size, color_mode="grayscale", batch_size=BATCH, class_mode="binary"
        )
        for step in range(len(flow)):
            flow[step]

    def pillow():
        for path in manifest.table.path:
            np.asarray(Image.open(folder / path).convert("L").resize(size, Image.Resampling.BILINEAR))

    return {
        "pipeline, first epoch (decode, antialias, cache)": pipeline_first,
        "pipeline, later epochs": pipeline_later(AugmentParams()),
        "pipeline, later epochs, augmented": pipeline_later(AUGMENT),
        "image_dataset_from_directory, each epoch": keras_directory,
        "ImageDataGenerator (legacy), each epoch": generator,
        "Pillow, one thread": pillow,
    }


def compare_readers(scratch: Path, size_px: int, rounds: int) -> None:
    """Part one: images per second, median over rounds that take turns, and the ratio to Keras's own reader."""
    manifest = manifest_of(find_files(scratch))
    ways = readers(manifest, ImageParams(size_px=size_px), scratch)
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    rates = {name: len(manifest.table) / statistics.median(values) for name, values in times.items()}
    base = rates["image_dataset_from_directory, each epoch"]
    kind = "full-size originals" if manifest.root == ORIGINALS else "drawn files"
    print(f"\n## Reading {len(manifest.table)} {kind} at {size_px} px, median of {rounds} rounds\n")
    print("| way | images/s | times image_dataset_from_directory |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / base:.2f} |")


def noise_images(n: int, size_px: int) -> ImageSet:
    """Random pixels: a network's arithmetic does not depend on them."""
    pixels = np.random.default_rng(0).integers(0, 255, (n, size_px, size_px, 1), np.uint8)
    return ImageSet(pd.DataFrame({"label": np.arange(n) % 2}), pixels)


def share_of_an_epoch(size_px: int, n: int, rounds: int) -> None:
    """Part two: an epoch of the baseline through the pipeline, plain and augmented, against arrays in memory."""
    images = noise_images(n, size_px)
    steps = steps_per_epoch(images, BATCH)
    network = build_model(ModelParams(), ImageParams(size_px=size_px))
    compile_model(network, RunParams(), steps)
    x, y = images.pixels, images.table.label.to_numpy(np.float32)[:, None]
    w = np.ones_like(y)

    def fit(*data, **how) -> None:
        network.fit(*data, epochs=1, shuffle=False, verbose=0, **how)

    def through(augment: AugmentParams) -> Callable[[], object]:
        data = train_dataset(images, augment, BATCH, seed=1, epochs=10_000)
        return lambda: fit(data, steps_per_epoch=steps)

    ways = {
        "arrays in memory": lambda: fit(x, y, sample_weight=w, batch_size=BATCH),
        "pipeline": through(AugmentParams()),
        "pipeline, augmented": through(AUGMENT),
    }
    for way in ways.values():
        way()  # the first call traces the training step
    wall, cpu = {name: [] for name in ways}, {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % 3 :] + names[: turn % 3]:  # no way is always the first, or the last
            began = time.process_time()
            wall[name].append(seconds(ways[name]))
            cpu[name].append(time.process_time() - began)
    alone = {"arrays in memory": 0.0, "pipeline": input_cpu(images, AugmentParams()),
             "pipeline, augmented": input_cpu(images, AUGMENT)}  # fmt: skip
    base_wall, base_cpu = min(wall["arrays in memory"]), min(cpu["arrays in memory"])
    print(f"\n## An epoch of separable_cnn, {n} images at {size_px} px, fastest of {rounds} rounds\n")
    print(
        "| input | input's CPU time / epoch's from arrays | epoch's CPU time / from arrays | epoch's wall time / from arrays |"
    )
    print("|---|---|---|---|")
    for name in ways:
        ratios = alone[name] / base_cpu, min(cpu[name]) / base_cpu, min(wall[name]) / base_wall
        print(f"| {name} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |")


def input_cpu(images: ImageSet, augment: AugmentParams) -> float:
    """CPU seconds of one epoch's input without a network, on all threads; the first epoch builds the graph, untimed."""
    batches = iter(train_dataset(images, augment, BATCH, seed=1, epochs=1 + LATER_EPOCHS))
    exhaust(itertools.islice(batches, steps_per_epoch(images, BATCH)))
    began = time.process_time()
    exhaust(batches)
    return (time.process_time() - began) / LATER_EPOCHS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-px", type=int, default=180)
    parser.add_argument("--images", type=int, default=256, help="images of the epoch in part two")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    facts = start(RunParams())
    print(f"{time.strftime('%Y-%m-%d')}: {facts['device']}, {facts['cores']} cores, TensorFlow {tf.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        compare_readers(Path(scratch), options.size_px, options.rounds)
    share_of_an_epoch(options.size_px, options.images, options.rounds)


if __name__ == "__main__":
    main()
