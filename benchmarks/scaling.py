"""Training input from a mapped file: `make bench`. Its memory past what the process may hold, and its speed beside arrays.

Part one: a process that may take 250 MB more (RLIMIT_DATA) goes through an epoch and an evaluation of a file several times as
large. Mappings of files do not count to that limit; the same process fails when it copies the file into memory.
Part two: images per second of the mapped file, beside the same input of an array in memory and beside TensorFlow's own gather
from a tensor. That is faster for small images that nothing changes, and no way for many: tf.data's optimizer fills as much
memory again for each iterator over a tensor. The batches of all three are the same.
"""

import argparse
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import tensorflow as tf

from pneumolib.data.augment import N_DRAWS, augment_batch
from pneumolib.data.batches import eval_dataset, train_dataset
from pneumolib.data.pixels import ImageSet
from pneumolib.params import AugmentParams

SIDE, BATCH, EPOCHS, ALLOWED_MB = 180, 32, 4, 250
STUDY_IMAGES = 5_216  # of the archive's training pool
AUGMENT = AugmentParams(
    flip=True, rotation_deg=10.0, shift_fraction=0.06, zoom_fraction=0.1, gamma_factor=1.8, contrast_factor=1.6,
    brightness_fraction=0.15,
)  # fmt: skip


def status_mb(name: str) -> float:
    """A line of this process's status (Linux), in MB of 10^6 bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 / 1e6


def exhaust(items: Iterable) -> None:
    """Go through everything and keep nothing."""
    for _ in items:
        pass


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_noise(file: Path, n: int) -> ImageSet:
    """`n` images of noise in a mapped file, with a table that has what the input needs."""
    block = np.random.default_rng(0).integers(0, 255, (min(n, 1000), SIDE, SIDE, 1), np.uint8)
    mapped = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(n, SIDE, SIDE, 1))
    for start in range(0, n, len(block)):
        mapped[start : start + len(block)] = block[: n - start]
    mapped.flush()
    return open_noise(file)


def open_noise(file: Path) -> ImageSet:
    """The images that `write_noise` wrote."""
    pixels = np.load(file, mmap_mode="r")
    return ImageSet(pd.DataFrame({"label": np.arange(len(pixels)) % 2}), pixels)


# --- memory


def child(file: Path) -> None:
    """In a process of its own: limit its memory, go through the file, and print what grew."""
    images, n = open_noise(file), 4 * BATCH
    few = ImageSet(images.table[:n], images.pixels[:n])
    exhaust(train_dataset(few, AugmentParams(), BATCH, seed=1, epochs=2))  # what TensorFlow takes for itself
    exhaust(eval_dataset(few.pixels, BATCH))
    limit = int((status_mb("VmData") + ALLOWED_MB) * 1e6)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before, found = status_mb("RssAnon"), {}
    for name, data in (
        ("an epoch", train_dataset(images, AugmentParams(), BATCH, seed=1, epochs=1)),
        ("an evaluation", eval_dataset(images.pixels, BATCH)),
    ):
        found[name] = max(status_mb("RssAnon") - before for _ in data)
    try:
        np.array(images.pixels)
        found["copy"] = "fits"
    except MemoryError:
        found["copy"] = "MemoryError"
    print(json.dumps(found))


def memory(scratch: Path, n: int) -> None:
    """Part one."""
    write_noise(scratch / "large.npy", n)
    command = [sys.executable, __file__, "--child", str(scratch / "large.npy")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"\n## {n:,} images, {n * SIDE**2 / 1e6:,.0f} MB of pixels, in a process that may take {ALLOWED_MB} MB more\n"
    )
    print("| what | anonymous memory above the start, MB |\n|---|---|")
    for name in ("an epoch", "an evaluation"):
        print(f"| {name} from the mapped file, peak | {found[name]:,.0f} |")
    print(f"| the file copied into memory | {found['copy']} |")


# --- speed


def from_tensor(images: ImageSet, augment: AugmentParams, epochs: int) -> tf.data.Dataset:
    """The batches of `train_dataset` under seed 1, gathered from a tensor that holds all pixels."""
    pixels, n = tf.constant(np.array(images.pixels)), len(images)
    labels = tf.constant(images.table.label.to_numpy()[:, None], tf.float32)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(1, tf.int64), epoch])
        draws = tf.random.stateless_uniform([n, N_DRAWS], seed=key + tf.constant([0, 1 << 32], tf.int64))

        def batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            y = tf.gather(labels, rows)
            return augment_batch(tf.gather(pixels, rows), tf.gather(draws, rows), augment), y, tf.ones_like(y)

        rows = tf.data.Dataset.from_tensor_slices(tf.random.experimental.stateless_shuffle(tf.range(n), seed=key))
        return rows.batch(BATCH, drop_remainder=True).map(batch, num_parallel_calls=tf.data.AUTOTUNE)

    return tf.data.Dataset.range(epochs).flat_map(one_epoch).prefetch(8)


def speed(scratch: Path, rounds: int) -> None:
    """Part two: the ways take turns, and the fastest round of each counts."""
    mapped = write_noise(scratch / "study.npy", STUDY_IMAGES)
    array = ImageSet(mapped.table, np.array(mapped.pixels))
    print(f"\n## An epoch's input, {STUDY_IMAGES:,} images at {SIDE} px, fastest of {rounds} rounds, images/s\n")
    print("| augmentation | mapped file | array in memory | tensor in memory | mapped / array | mapped / tensor |")
    print("|---|---|---|---|---|---|")
    for name, augment in (("none", AugmentParams()), ("usual", AUGMENT)):
        ways = [train_dataset(images, augment, BATCH, seed=1, epochs=EPOCHS) for images in (mapped, array)]
        ways.append(from_tensor(mapped, augment, EPOCHS))
        for first, *others in itertools.islice(zip(*ways, strict=True), 20):
            for other in others:
                tf.nest.map_structure(np.testing.assert_array_equal, first, other)
        rates = STUDY_IMAGES / np.min([[epoch_seconds(way) for way in ways] for _ in range(rounds)], axis=0)
        shown = " | ".join(f"{rate:,.0f}" for rate in rates)
        print(f"| {name} | {shown} | {rates[0] / rates[1]:.2f} | {rates[0] / rates[2]:.2f} |", flush=True)


def epoch_seconds(data: tf.data.Dataset) -> float:
    """Wall time of an epoch, of all but the first, which builds the graph; afterwards no thread goes on reading."""
    batches = iter(data)
    exhaust(itertools.islice(batches, STUDY_IMAGES // BATCH))
    return seconds(lambda: exhaust(batches)) / (EPOCHS - 1)


def main() -> None:
    """Print both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=40_000, help="images of the large file")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    print(f"{time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores, TensorFlow {tf.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder), options.images)
        speed(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
