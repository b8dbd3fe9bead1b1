"""What a training step costs on this machine's device, and how much of it is waiting for input.

    .venv/bin/python benchmarks/device.py --studies kermany coursework recall-vgg19

Every training of the studies at its full size, batch and precision, through all its layers; weights are random, which
changes no time, and the images are noise, decoded already. Each is timed twice: on batches from the input pipeline, and on
one batch over and over. What the second is faster by is the input's share. On a machine with an NVIDIA GPU its utilisation
and memory are read twice a second meanwhile. Without a GPU the large networks take minutes a step: lower `--steps`.
"""

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

from pneumolib import data, learning
from pneumolib.data.pixels import ImageSet
from pneumolib.params import RunParams
from pneumolib.project import TRAINING, load_run
from pneumolib.study.plan import continued_run

ROOT = Path(__file__).resolve().parents[1]
QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


def trainings(study: str) -> dict[str, tuple[RunParams, RunParams]]:
    """Run to its parameters and to those that its network is built from."""
    found = {}
    for file in sorted((ROOT / "params" / study).glob("*.yaml")):
        if file.stem.startswith(TRAINING):
            params = load_run(file)[0]
            fine_tuned = file.stem.startswith(TRAINING[-1])
            built = load_run(file.with_stem(continued_run(file.stem, params)))[0] if fine_tuned else params
            found[file.stem] = (params, built)
    return found


def build(params: RunParams, built: RunParams):
    """The run's network with random weights, its layers free as they are when it trains."""
    model, free = built.model, params.fine_tuning
    if model.from_file:  # which need not be here; another network has no layer of the same name
        model = model.model_copy(update={"backbone": "MobileNetV2", "weights": "none", "preprocess": None})
        free = free.model_copy(update={"unfreeze": "all"})
    elif model.backbone:
        model = model.model_copy(update={"weights": "none"})
    network = learning.build_model(model, params.image)
    if built is not params:
        learning.unfreeze(network, free)
    return network


class Meter:
    """Reads every GPU twice a second while it is open; `readings` are (per cent, MiB), empty without a GPU."""

    def __enter__(self):
        self.readings, self.stop = [], threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        if shutil.which(QUERY[0]):
            self.thread.start()
        return self

    def _read(self):
        while not self.stop.wait(0.5):
            lines = subprocess.run(QUERY, capture_output=True, text=True, check=False).stdout.splitlines()
            self.readings += [tuple(float(v) for v in line.split(",")) for line in lines]

    def __exit__(self, *_):
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join()

    def words(self) -> tuple[str, str]:
        """Median utilisation in per cent and largest memory in GiB."""
        if not self.readings:
            return "no GPU", "no GPU"
        use, memory = zip(*self.readings, strict=True)
        return f"{statistics.median(use):.0f}%", f"{max(memory) / 1024:.1f}"


def measure(params: RunParams, built: RunParams, steps: int) -> list[str]:
    """One row of the table."""
    with contextlib.redirect_stdout(sys.stderr):
        facts = learning.start(params)
    batch, size = params.training.batch_size, params.image.size_px
    rng = np.random.default_rng(0)
    n = batch * steps
    table = pd.DataFrame({"image_id": [str(i) for i in range(n)], "split": "train", "label": np.arange(n) % 2})
    images = ImageSet(table, rng.integers(0, 256, (n, size, size, params.image.channels), np.uint8))
    network = build(params, built)
    learning.compile_model(network, params, steps)
    piped = data.train_dataset(images, params.augment, batch, params.seed, epochs=3)
    one = piped.take(1).cache().repeat()
    options = {"steps_per_epoch": steps, "shuffle": False, "verbose": 0}
    network.fit(one, **options)  # compiles
    began = time.perf_counter()
    network.fit(one, **options)
    alone = time.perf_counter() - began
    with Meter() as meter:
        began = time.perf_counter()
        network.fit(piped, epochs=2, **options)
        whole = (time.perf_counter() - began) / 2
    share = max(0.0, 1 - alone / whole)
    return [facts["device"], facts["precision"], str(size), str(batch), f"{n / whole:.0f}",
            f"{1000 * whole / steps:.0f}", f"{100 * share:.0f}%", *meter.words()]  # fmt: skip


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", nargs="+", default=["kermany", "coursework", "recall-vgg19"])
    parser.add_argument("--steps", type=int, default=60, help="training steps in an epoch; two are timed (%(default)s)")
    parser.add_argument("--runs", default="", help="only runs whose name begins with this")
    options = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {options.steps} steps\n")
    heads = [
        "run",
        "device",
        "precision",
        "px",
        "batch",
        "images/s",
        "ms a step",
        "input's share",
        "GPU in use",
        "GPU GiB",
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for study in options.studies:
        for run, (params, built) in trainings(study).items():
            if run.startswith(options.runs):
                row = measure(params, built, options.steps)
                print(f"| {study}/{run} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
