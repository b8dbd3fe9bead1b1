"""What training costs: `make bench`. Ratios from one run on one machine, on the radiographs of ../shared.

Part one: an epoch of the baseline with and without deterministic operations, each in a process of its own; without them
Keras also compiles with XLA unless told not to. Also without `study.run.KEPT_MEMORY`. Part two: the head of the recommended
recipe on kept features, and the same head through the frozen backbone. Part three: the time to a validation AUROC of 0.97, for
the recommended recipe and for `tpu-cnn` as published, which is given up after `--published-epochs`, each of minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pandas as pd

from pneumolib import data, evaluation, learning
from pneumolib.data.pixels import ImageSet
from pneumolib.evaluation.calibration import NONE
from pneumolib.learning.fitting import compile_model
from pneumolib.params import DataParams, ImageParams, RunParams
from pneumolib.project import load_run
from pneumolib.study.run import KEPT_MEMORY

ROOT = Path(__file__).resolve().parents[1]
RADIOGRAPHS = ROOT.parent / "shared/data/chest_xray"
BACKBONE = ROOT.parent / "shared/data/backbones/squeezenet_imagenet_notop.keras"
WAYS = ("deterministic", "not deterministic", "not deterministic, XLA", "deterministic, memory given back")
COMPILE_LIMIT = 300  # seconds for a process of part one; XLA can take long over separable convolutions on a CPU


def params_of(file: str, **sections) -> RunParams:
    """A run's parameters on the shared radiographs; `sections` maps a section to the keys to change in it."""
    params = load_run(ROOT / "params" / file)[0]
    if params.model.weights == "imagenet":  # of a file, because nothing is downloaded here
        sections["model"] = {"backbone": str(BACKBONE), "weights": None, "preprocess": "caffe"}
    changed = {name: getattr(params, name).model_copy(update=keys) for name, keys in sections.items()}
    return params.model_copy(update={"data": DataParams(root=str(RADIOGRAPHS))} | changed)


def read(params: RunParams, images: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Training and validation images, at most `images` of the former."""
    manifest = data.read_manifest(params.data)
    split = data.split_manifest(manifest.table, params.split)
    train, val = (data.read_images(manifest, split, part, params.image) for part in ("train", "val"))
    if images is None or images >= len(train):
        return train, val
    rows = np.sort(np.random.default_rng(0).choice(len(train), images, replace=False))
    return ImageSet(train.table.iloc[rows].reset_index(drop=True), np.ascontiguousarray(train.pixels[rows])), val


def build(params: RunParams, train: ImageSet) -> keras.Model:
    """The network as a notebook builds it."""
    weights = learning.class_weights(train.table.label, params.training.class_weights)
    return learning.build_model(params.model, params.image, learning.initial_logit(train.table.label, weights))


def one_epoch(way: str, images: int = 512) -> float:
    """Seconds of an epoch of the baseline in this process, the faster of three after the first."""
    if way in (WAYS[0], WAYS[3]):
        learning.start(RunParams())
    params = RunParams(image=ImageParams(size_px=128))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (images, 128, 128, 1), np.uint8), rng.integers(0, 2, (images, 1)).astype(np.float32)
    network = learning.build_model(params.model, params.image)
    compile_model(network, params, images // 32)
    if way == WAYS[1]:
        network.jit_compile = False
    times = []
    for _ in range(4):
        began = time.perf_counter()
        network.fit(x, y, batch_size=32, shuffle=False, verbose=0)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def determinism() -> None:
    """Part one."""
    print("\n## An epoch of separable_cnn, 512 images at 128 px\n\n| operations | times deterministic |\n|---|---|")
    seconds = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--epoch", way]
        try:
            memory = {} if way == WAYS[3] else {"GLIBC_TUNABLES": KEPT_MEMORY}
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=COMPILE_LIMIT, env=os.environ | memory
            )
        except subprocess.TimeoutExpired:
            print(f"| {way} | not ready after {COMPILE_LIMIT} s |", flush=True)
            continue
        seconds[way] = float(done.stdout.split()[-1])
        print(f"| {way} | {seconds[way] / seconds[WAYS[0]]:.2f} |", flush=True)


def auroc_with_interval(network: keras.Model, val: ImageSet, params: RunParams) -> str:
    """Validation AUROC, interval from groups."""
    predictions = NONE.applied(learning.predict(network, val))
    table = evaluation.metric_table(predictions, "val", 0.5, params.evaluation, 1)
    row = table[table.metric == "auroc"].iloc[0]
    return f"{row.value:.4f} ({row.low:.4f}-{row.high:.4f})"


def kept_features(images: int, epochs: int, views: int) -> None:
    """Part two."""
    print(f"\n## A head on SqueezeNet, {images} images, {epochs} epochs, until the end\n")
    print("| way | seconds | ratio | validation AUROC |\n|---|---|---|---|")
    first = None
    for name, k in ((f"kept features, {views} views", views), ("through the frozen backbone", 0)):
        params = params_of("kermany/04_transfer_learning.yaml", features={"views": k},
                           training={"epochs": epochs, "patience_epochs": None})  # fmt: skip
        learning.start(params)
        train, val = read(params, images)
        network = build(params, train)
        began = time.perf_counter()
        learning.fit(network, train, val, params)
        seconds = time.perf_counter() - began
        first = first or seconds
        print(
            f"| {name} | {seconds:.1f} | {seconds / first:.1f} | {auroc_with_interval(network, val, params)} |",
            flush=True,
        )


def until(
    params: RunParams, auroc: float, trainer, network: keras.Model, train: ImageSet, val: ImageSet
) -> pd.DataFrame:
    """Train until validation reaches `auroc`, or to the end of the parameters' epochs."""
    reached = {"keep_best": ["auroc"], "floors": {"auroc": auroc}, "patience_epochs": 1}
    asked = params.model_copy(update={"training": params.training.model_copy(update=reached)})
    return trainer(network, train, val, asked)


def time_to(auroc: float, published_epochs: int) -> None:
    """Part three. The epoch after the one that reached it, which stopping needs, does not count."""
    print(f"\n## Seconds to a validation AUROC of {auroc}, reading and building left out\n")
    print("| training | seconds | ratio | epochs | best validation AUROC |\n|---|---|---|---|---|")
    first = None
    for file, trainer, limit in (
        ("kermany/04_transfer_learning.yaml", learning.fit, {}),
        ("tpu-cnn/03_baseline_cnn.yaml", learning.fit, {"epochs": published_epochs}),
    ):
        params = params_of(file, training=limit)
        learning.start(params)
        train, val = read(params)
        network = build(params, train)
        began = time.perf_counter()
        history = until(params, auroc, trainer, network, train, val)
        seconds = time.perf_counter() - began
        reached = history.kept.any()
        epochs = int(history.epoch[history.kept].min()) if reached else len(history)
        seconds -= history.seconds[history.epoch > epochs].sum()
        first = first or seconds
        more, not_within = ("", "") if reached else ("more than ", "not within ")
        print(
            f"| {file} | {seconds:.0f} | {more}{seconds / first:.1f} | {not_within}{epochs} | "
            f"{history.val_auroc.max():.4f} |",
            flush=True,
        )


def main() -> None:
    """Print three tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epoch", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--parts", default="123", help="which of the three parts to run")
    parser.add_argument("--images", type=int, default=1000, help="training images of part two")
    parser.add_argument("--epochs", type=int, default=40, help="of part two")
    parser.add_argument(
        "--published-epochs", type=int, default=6, help="of part three, after which tpu-cnn is given up"
    )
    options = parser.parse_args()
    if options.epoch:
        print(one_epoch(options.epoch))
        return
    print(f"{time.strftime('%Y-%m-%d')}: {learning.start(RunParams())['cores']} cores")
    if "1" in options.parts:
        determinism()
    if not RADIOGRAPHS.is_dir():
        print(f"\nParts two and three need the radiographs of {os.path.relpath(RADIOGRAPHS, ROOT)}; not found")
        return
    if "2" in options.parts:
        kept_features(options.images, options.epochs, views=2)
    if "3" in options.parts:
        time_to(0.97, options.published_epochs)


if __name__ == "__main__":
    main()
