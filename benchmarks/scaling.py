"""What grows with the data: `make bench`. Pixels in memory against pixels in shards, and what 100,000 and 10 million would take.

50,000 JPEG files of 64 px, cheap variations of a few drawn radiographs, go through manifest, split, audit, cache, training input
and evaluation; speed and peak memory are those of processes of their own. Shards and windows are made a sixteenth of their
size there, as the images are about an eighth of those of a study. The last table is arithmetic on what was measured in this run.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import expit

from pneumolib import audit, evaluation
from pneumolib.data import draw_radiograph, load_image, read_images, read_manifest, shards, split_manifest
from pneumolib.data.images import ImageSet
from pneumolib.data.manifest import Manifest
from pneumolib.data.shards import ShardedPixels
from pneumolib.data.tfrecord import framed
from pneumolib.params import AugmentParams, DataParams, EvaluationParams, ImageParams, RunParams

ORIGINALS = Path(__file__).resolve().parents[2] / "shared/data/originals/train"
SIZES, SIDE = (5_000, 20_000, 50_000), 64
SMALLER = 16  # shards and windows, for images that are smaller
STUDY_PX, STUDY_IMAGES = 180, 5_216
BATCH = 32
BYTES = "bytes of a row of the table"
LARGE = (100_000, 10_000_000)
AUGMENT = AugmentParams(
    flip=True, rotation_deg=10.0, shift_fraction=0.06, zoom_fraction=0.1, gamma_factor=1.8, contrast_factor=1.6,
    brightness_fraction=0.15,
)  # fmt: skip


def draw_files(root: Path, n: int) -> None:
    """`n` small files in the archive's layout, two of a child, a fifth of them test; no two alike."""
    rng = np.random.default_rng(0)
    kinds = ("IM", "bacteria", "virus", "bacteria")
    drawn = [np.asarray(Image.fromarray(draw_radiograph(kind, number, 0, 1)).resize((SIDE, SIDE)), np.float32)
             for number in range(12) for kind in kinds]  # fmt: skip
    for folder in (f"{split}/{name}" for split in ("train", "test") for name in ("NORMAL", "PNEUMONIA")):
        (root / folder).mkdir(parents=True)

    for start in range(0, n, 1000):
        noise = rng.normal(0, 4, (1000, SIDE, SIDE)).astype(np.float32)
        for i in range(start, min(start + 1000, n)):
            child, kind = i // 8, kinds[i % 4]
            name = f"NORMAL/IM-{child:06d}-{i:06d}" if kind == "IM" else f"PNEUMONIA/person{child}_{kind}_{i}"
            pixels = np.clip(drawn[i % len(drawn)] * rng.uniform(0.8, 1.1) + noise[i - start], 0, 255).astype(np.uint8)
            file = root / ("test" if child % 5 == 0 else "train") / f"{name}.jpeg"
            Image.fromarray(pixels).save(file, quality=90)


def exhaust(items: Iterable) -> None:
    """Go through everything and keep nothing."""
    for _ in items:
        pass


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def print_table(heads: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A table in Markdown."""
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(
            f"| {' | '.join(f'{cell:,.2f}' if isinstance(cell, float) else f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |",
            flush=True,
        )


def memory_mb(which: str) -> float:
    """A line of this process's status (Linux), in MB of 10^6 bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{which}:\s+(\d+)", status)[1]) * 1024 / 1e6


# --- manifest, audit and evaluation


def tables(scratch: Path) -> dict[str, dict[int, float]]:
    """Part one: seconds by step at the smallest and the largest number, pixels left out; returns them and the table's bytes."""
    small, large = SIZES[0], SIZES[-1]
    at = {n: steps(scratch, n) for n in (small, large)}
    found = {name: {n: at[n][name] for n in at} for name in at[small]}
    print(f"\n## Tables: seconds at {small:,} and {large:,} images; a ratio of {large // small} is linear\n")
    rows = [(name, of[small], of[large], of[large] / of[small]) for name, of in found.items() if name != BYTES]
    print_table(("step", f"{small:,}", f"{large:,}", "ratio"), rows)
    return found


def steps(scratch: Path, n: int) -> dict[str, float]:
    """Seconds of each step at `n` images."""
    root, params = scratch / f"archive{n}", RunParams()
    data = DataParams(root=str(root))
    times = {"drawing the files": seconds(lambda: draw_files(root, n))}
    for way in ("cold", "warm"):
        times[f"manifest, {way}"] = seconds(lambda: read_manifest(data, scratch / "manifest"))
    manifest = read_manifest(data, scratch / "manifest")
    times["split"] = seconds(lambda: split_manifest(manifest.table, params.split))
    times |= table_steps(manifest, params) | evaluation_steps(n)
    return times | {BYTES: float(manifest.table.memory_usage(deep=True).sum() / n)}


def table_steps(manifest: Manifest, params: RunParams) -> dict[str, float]:
    """The parts of the audit that need no pixels."""
    split, features = split_manifest(manifest.table, params.split), audit.metadata_features(manifest.table)
    return {
        "audit: groups": seconds(lambda: (audit.group_findings(manifest.table, split), audit.sensitivity_list(manifest.table, split))),
        "audit: duplicates": seconds(lambda: audit.find_duplicates(manifest.table, split)),
        "audit: file facts together": seconds(lambda: audit.judge_shortcut(features, split, params.evaluation, 1)),
    }  # fmt: skip


def evaluation_steps(n: int) -> dict[str, float]:
    """Statistics of a test set of a tenth of `n` images."""
    rng, n = np.random.default_rng(0), n // 10
    label = np.arange(n) % 4 > 0
    logit = rng.normal(4 * label - 2, 1.5)
    groups = [f"{sick}-{i // 2}" for i, sick in enumerate(label)]
    predictions = pd.DataFrame({"image_id": [f"{i}" for i in range(n)], "split": "test", "label": label.astype(int), "kind": "x",
                                "group_id": groups, "logit": logit, "probability": expit(logit)})  # fmt: skip
    params = EvaluationParams()
    return {f"bootstrap of twelve metrics, a tenth as test, {params.resamples:,} resamples":
            seconds(lambda: evaluation.metric_table(predictions, "test", 0.5, params, 1))}  # fmt: skip


# --- pixels: a process for each way and number


def child(way: str, folder: str, n: str, epochs: str, augmented: str) -> None:
    """In a process of its own: print speed and peak memory of evaluation and of training from `n` images below `folder`."""
    import tensorflow as tf

    from pneumolib.data import pipeline

    (side,) = (int(name) for name in re.findall(r"px(\d+)", folder))
    if side == SIDE:
        make_smaller(pipeline)
    images = open_images(way, Path(folder), int(n), side)
    tf.constant(0)  # what TensorFlow takes for itself is not the input's
    augment = AUGMENT if augmented == "augmented" else AugmentParams()
    each, before, found = len(images) // BATCH, memory_mb("VmRSS"), {}

    def measured(what: str, work: Callable[[], float]) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark back
        found[what] = work()
        found[f"{what}, peak"] = memory_mb("VmHWM") - before

    def evaluate() -> float:
        pixels = images.pixels if way == "memory" else in_shards(Path(folder), images.pixels.shape, mixed=False)
        return len(images) / seconds(lambda: exhaust(pipeline.eval_dataset(pixels, 64)))

    def train() -> float:
        batches = iter(pipeline.train_dataset(images, augment, BATCH, seed=1, epochs=int(epochs)))
        return (
            each
            * BATCH
            / min([seconds(lambda: exhaust(itertools.islice(batches, each))) for _ in range(int(epochs))][1:])
        )

    measured("evaluated", evaluate)
    measured("trained", train)
    print(json.dumps(found))


def make_smaller(pipeline) -> None:
    """Shards and windows for small images; `pipeline` is the module, which imports TensorFlow."""
    shards.SHARD_BYTES, pipeline.WINDOW_BYTES = shards.SHARD_BYTES // SMALLER, pipeline.WINDOW_BYTES // SMALLER


def in_shards(folder: Path, shape: tuple, mixed: bool) -> ShardedPixels:
    """Shards of that many images below `folder`, read by training if mixed and by evaluation if not."""
    return ShardedPixels(folder / f"shards{shape[0]}-{mixed}", shape, mixed)


def open_images(way: str, folder: Path, n: int, side: int) -> ImageSet:
    """The first `n` images of `folder`'s mapped file, with a table that has what the input needs."""
    table = pd.DataFrame({"label": np.arange(n) % 2})
    if way == "memory":
        return ImageSet(table, np.load(folder / "pixels.npy", mmap_mode="r")[:n])
    return ImageSet(table, in_shards(folder, (n, side, side, 1), True))


def write_both(folder: Path, pixels: np.ndarray, numbers: Iterable[int]) -> None:
    """`pixels` as one file, and the first of them as shards of both kinds for each of `numbers`."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "pixels.npy", pixels)
    for n in numbers:
        for mixed in (True, False):
            made, building = in_shards(folder, (n, *pixels.shape[1:]), mixed), folder / "building"
            missing = shards.missing_shards(made, building)
            rows = (row for shard in missing for row in made.rows_of(shard))
            shards.build_shards(made, building, missing, (pixels[row] for row in rows))


def ask(way: str, folder: Path, n: int, epochs: int, augmented: str = "plain") -> dict[str, float]:
    """What `child` prints, from a process of its own."""
    command = [sys.executable, __file__, "--child", way, str(folder), str(n), str(epochs), augmented]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.splitlines()[-1])


def heads_of(first: str) -> tuple[str, ...]:
    """Column heads for `row_of`; `first` is what stands against shards."""
    return ("images", "pixels, MB", f"{first}: images/s", "shards: images/s", f"shards / {first}", f"{first}: peak, MB",
            "shards: peak, MB")  # fmt: skip


def row_of(n: int, side: int, first: dict, sharded: dict, what: str) -> tuple:
    """A row below `heads_of`."""
    return (n, f"{n * side * side / 1e6:,.0f}", f"{first[what]:,.0f}", f"{sharded[what]:,.0f}", sharded[what] / first[what],
            f"{first[f'{what}, peak']:,.0f}", f"{sharded[f'{what}, peak']:,.0f}")  # fmt: skip


def build_from_files(scratch: Path) -> tuple[np.ndarray, str]:
    """The largest archive's pixels, decoded into shards by `read_images`; and a sentence on what that took."""
    n, root = SIZES[-1], scratch / f"archive{SIZES[-1]}"
    manifest = read_manifest(DataParams(root=str(root)), scratch / "manifest")
    rows = manifest.table.assign(split="train")[["image_id", "split", "label", "kind", "group_id"]]
    params = ImageParams(size_px=SIDE, memory_gb=0.0)
    took = seconds(lambda: read_images(manifest, rows, "train", params, scratch / "cache"))
    made = read_images(manifest, rows, "train", params, scratch / "cache").pixels
    size = sum(file.stat().st_size for file in made.files()) / n
    said = f"\nDecoded {n:,} files of {SIDE} px into {made.n_shards} shards: {n / took:,.0f} images/s, {size:,.0f} bytes each."
    return made[:], said


def pixels(scratch: Path) -> dict[str, float]:
    """Parts two and three: memory against shards, at growing numbers and at a study's size."""
    from pneumolib.data import pipeline

    defaults = shards.SHARD_BYTES, pipeline.WINDOW_BYTES
    make_smaller(pipeline)
    all_pixels, said = build_from_files(scratch)
    print(said)
    small, study = scratch / f"px{SIDE}", scratch / f"px{STUDY_PX}"
    write_both(small, all_pixels, SIZES)
    shards.SHARD_BYTES, pipeline.WINDOW_BYTES = defaults
    # As many images in each row: what an allocator keeps grows with what went through it, up to a limit.
    found = {n: [ask(way, small, n, 3 * SIZES[-1] // n) for way in ("memory", "shards")] for n in SIZES}
    for first, what in (("memory", "trained"), ("mapped", "evaluated")):
        print(
            f"\n## {'An epoch' if what == 'trained' else 'Evaluation'}'s input at {SIDE} px; peaks are above the process without it\n"
        )
        print_table(heads_of(first), [row_of(n, SIDE, *both, what) for n, both in found.items()])
    noise = np.random.default_rng(0).integers(0, 255, (STUDY_IMAGES, STUDY_PX, STUDY_PX, 1), np.uint8)
    write_both(study, noise, [STUDY_IMAGES])
    print(f"\n## An epoch's input at {STUDY_PX} px, noise, shards and windows as studies get them\n")
    kinds = {
        kind: [ask(way, study, STUDY_IMAGES, epochs, kind) for way in ("memory", "shards")]
        for kind, epochs in (("plain", 4), ("augmented", 2))
    }
    print_table(
        ("augmentation", *heads_of("memory")),
        [(kind, *row_of(STUDY_IMAGES, STUDY_PX, *both, "trained")) for kind, both in kinds.items()],
    )
    return {"memory": kinds["plain"][0]["trained"], "shards": kinds["plain"][1]["trained"],
            "augmented": kinds["augmented"][1]["trained"], "peak": kinds["plain"][1]["trained, peak"],
            "memory_peak": kinds["plain"][0]["trained, peak"] / (STUDY_IMAGES * STUDY_PX**2 / 1e6)}  # fmt: skip


# --- what an image costs, and what many would


def per_image(scratch: Path) -> dict[str, float]:
    """CPU seconds to decode one original, and wall seconds of a training step and of a frozen backbone, an image."""
    import keras

    from pneumolib.learning.devices import start
    from pneumolib.learning.fitting import compile_model
    from pneumolib.learning.networks import build_model

    files = (
        sorted(ORIGINALS.rglob("*.jpeg"))[:40]
        if ORIGINALS.is_dir()
        else sorted(scratch.glob("archive*/train/*/*.jpeg"))[:40]
    )
    image = ImageParams(size_px=STUDY_PX)
    began = time.process_time()
    for file in files:
        load_image(file, image)
    found = {"decode": (time.process_time() - began) / len(files)}
    params = RunParams(image=image)
    start(params)
    network = build_model(params.model, params.image)
    compile_model(network, params, 8)
    x, y = np.zeros((4 * BATCH, STUDY_PX, STUDY_PX, 1), np.uint8), np.zeros((4 * BATCH, 1), np.float32)
    network.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, verbose=0)
    found["train"] = seconds(lambda: network.fit(x, y, batch_size=BATCH, verbose=0)) / len(x)
    frozen = keras.applications.MobileNetV2((160, 160, 3), include_top=False, weights=None, pooling="avg")
    z = np.zeros((128, 160, 160, 3), np.float32)
    frozen.predict(z[:64], verbose=0, batch_size=64)
    found["frozen"] = seconds(lambda: frozen.predict(z, verbose=0, batch_size=64)) / len(z)
    return found


def arithmetic(costs: dict[str, float], rates: dict[str, float], table: dict[str, dict[int, float]]) -> None:
    """Part four: measured costs of an image, then multiplied."""
    cores, limit = os.cpu_count(), ImageParams().memory_gb
    pixels, record = STUDY_PX**2, len(framed(bytes(8 + STUDY_PX**2)))
    per_row = table[BYTES][SIZES[-1]]
    manifest = table["manifest, cold"][SIZES[-1]] / SIZES[-1] * cores
    boot = next(at for name, at in table.items() if name.startswith("bootstrap"))[SIZES[-1]] / (SIZES[-1] / 10)
    print(f"\n## Measured costs of one image at {STUDY_PX} px, grey, on these {cores} cores\n")
    print_table(("what", "cost"), [
        ("bytes in memory or in the mapped file", pixels), ("bytes in a shard", record), ("bytes of its row in the manifest", f"{per_row:,.0f}"),
        ("peak memory of training from memory, as a multiple of the pixels", rates["memory_peak"]),
        ("peak memory of the input from shards, MB, whatever the number", f"{rates['peak']:,.0f}"),
        ("decoding an original, ms of one core", 1000 * costs["decode"]),
        ("its epoch's input from memory, us", 1e6 / rates["memory"]), ("its epoch's input from shards, us", 1e6 / rates["shards"]),
        ("the same with augmentation, us", 1e6 / rates["augmented"]),
        ("training step of separable_cnn, ms", 1000 * costs["train"]),
        ("frozen MobileNetV2 at 160 px, ms", 1000 * costs["frozen"]),
    ])  # fmt: skip
    print(f"\n## What more images would take: arithmetic, not measured ({STUDY_PX} px, grey)\n")
    rows = [
        ("pixels, GB", [f"{n * pixels / 1e9:,.1f}" for n in LARGE]),
        (
            f"in memory or in shards, at image.memory_gb {limit:g}",
            ["memory" if n * pixels <= limit * 1e9 else "shards" for n in LARGE],
        ),
        (
            "memory for training if they lay in memory, GB",
            [f"{rates['memory_peak'] * n * pixels / 1e9:,.1f}" for n in LARGE],
        ),
        ("memory of the input from shards, GB", [f"{rates['peak'] / 1e3:.1f}" for _ in LARGE]),
        ("shards", [f"{-(-n * record // shards.SHARD_BYTES):,}" for n in LARGE]),
        ("disk for shards, GB", [f"{n * record / 1e9:,.1f}" for n in LARGE]),
        ("memory of the manifest's table, GB", [f"{n * per_row / 1e9:,.2f}" for n in LARGE]),
    ]
    for c in (cores, 32):
        rows += [(f"reading the manifest (small files), hours on {c} cores", [f"{n * manifest / c / 3600:,.2f}" for n in LARGE]),
                 (f"decoding originals once, hours on {c} cores", [f"{n * costs['decode'] / c / 3600:,.1f}" for n in LARGE])]  # fmt: skip
    rows += [
        (f"an epoch of separable_cnn, hours on {cores} cores", [f"{n * costs['train'] / 3600:,.1f}" for n in LARGE]),
        ("an epoch's augmented input from shards alone, hours", [f"{n / rates['augmented'] / 3600:,.1f}" for n in LARGE]),
        ("frozen MobileNetV2, one view of each, hours", [f"{n * costs['frozen'] / 3600:,.1f}" for n in LARGE]),
        ("its features (1,280 numbers, one view), GB", [f"{n * 1280 * 4 / 1e9:,.1f}" for n in LARGE]),
        ("bootstrap of a tenth as test, minutes at least", [f"{n / 10 * boot / 60:,.1f}" for n in LARGE]),
        ("its weights, one copy, GB", [f"{n / 10 * EvaluationParams().resamples * 8 / 1e9:,.1f}" for n in LARGE]),
    ]  # fmt: skip
    print_table(("", *(f"{n:,} images" for n in LARGE)), [(name, *cells) for name, cells in rows])


def main() -> None:
    """Print all tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    print(f"{time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        table = tables(scratch)
        rates = pixels(scratch)
        arithmetic(per_image(scratch), rates, table)


if __name__ == "__main__":
    main()
