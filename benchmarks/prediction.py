"""What `pneumolib predict` costs beside the bare network, and how soon it starts: `make bench`.

The limits: at least 80% of the images a second that the network alone makes of pixels in memory; a first answer within six
seconds. The network is the baseline at 180 px with random weights, the files are drawn ones and, where ../shared is there, full-size
originals.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil

from pneumolib.data.decode import LIMITS
from pneumolib.data.facts import fit_ood
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.data.manifest import read_manifest
from pneumolib.data.pixels import read_images
from pneumolib.data.split import split_manifest
from pneumolib.evaluation.calibration import Calibration, Threshold
from pneumolib.learning.devices import import_keras
from pneumolib.params import DataParams, ImageParams, ModelParams, SplitParams
from pneumolib.provenance import file_sha256
from pneumolib.reporting.results import (
    MODEL_FILE,
    VERSION,
    CalibrationResult,
    DataResult,
    Provenance,
    Result,
    ThresholdResult,
    write_result,
)
from pneumolib.serve.predict import BATCH, score_images
from pneumolib.serve.trained import TrainedModel

ORIGINALS = Path(__file__).resolve().parents[2] / "shared/data/originals/train"
IMAGE = ImageParams()
REPEATS = 5


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataParams(source="synthetic", root=f"{folder}/drawn", n_images=600)
        model, pixels, files = _model(data, Path(folder))
        sets = {"drawn files, about 400 px": files}
        if ORIGINALS.is_dir():
            sets["originals, about 1,300 px"] = sorted(ORIGINALS.rglob("*.jp*g"))
        print("| files | images/s | of the bare network's, median (range); limit 0.80 |\n|---|---|---|")
        for name, paths in sets.items():
            rates, shares = _beside_the_network(model, pixels, paths)
            print(
                f"| {name} | {np.median(rates):.0f} | {np.median(shares):.2f} ({min(shares):.2f}-{max(shares):.2f}) |"
            )
        _memory(model, files)
        _starts(model, files[0])


def _beside_the_network(model: TrainedModel, pixels: np.ndarray, paths: list[Path]) -> tuple[list[float], list[float]]:
    """Images a second and their share of the network's own, in turns: what else the machine does meets both."""
    rates, shares = [], []
    for _ in range(REPEATS + 1):
        bare = len(pixels) / _seconds(lambda: model.network.predict(pixels, batch_size=BATCH, verbose=0))
        rates.append(len(paths) / _seconds(lambda: _drain(model, paths)))
        shares.append(rates[-1] / bare)
    return rates[1:], shares[1:]  # the first ones compile


def _memory(model: TrainedModel, files: list[Path]) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    _drain(model, files * 10)
    grown = (process.memory_info().rss - before) / 1e6
    print(f"\nMemory after {len(files) * 10:,} more files: {grown:+.0f} MB of {before / 1e6:.0f}")


def _model(data: DataParams, folder: Path) -> tuple:
    """A model that is not trained, the pixels of its test images, and their files."""
    manifest = read_manifest(data, folder / "cache")
    split = split_manifest(manifest.table, SplitParams())
    parts = {part: read_images(manifest, split, part, IMAGE, folder / "cache") for part in ("train", "val")}
    import_keras()
    from pneumolib.learning.networks import build_model

    network = build_model(ModelParams(), IMAGE)
    ood = fit_ood(manifest, parts["train"], parts["val"])
    model = TrainedModel(folder, None, network, IMAGE, LIMITS, Threshold(0.5, "none", 0, 0), Calibration("none"), ood)
    paths = manifest.table.set_index("image_id").path[parts["train"].table.image_id]
    return model, parts["train"].pixels[:], [manifest.root / path for path in paths]


def _drain(model: TrainedModel, paths: list[Path]) -> None:
    for scored in score_images(model, ((path.name, path) for path in paths)):
        assert scored.error is None, scored.error


def _seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _starts(model: TrainedModel, file: Path) -> None:
    """Seconds from the command to its first answer, and of Keras's import alone, each in a process of its own."""
    _write_run(model)
    ways = {
        "pneumolib predict RUN FILE, to the first answer (limit: 6)": ["-m", "pneumolib", "predict", str(model.folder), str(file)],
        "import keras, to the end of the process": ["-c", "import keras"],
        "the same as the command line imports it": ["-c", "from pneumolib.learning.devices import import_keras; import_keras()"],
    }  # fmt: skip
    print("\n| start | seconds, median (range) |\n|---|---|")
    for name, words in ways.items():
        found = [_seconds_to_answer(words) for _ in range(REPEATS)]
        print(f"| {name} | {np.median(found):.1f} ({min(found):.1f}-{max(found):.1f}) |")


def _seconds_to_answer(words: list[str]) -> float:
    """Until a line that names a call is there, or the end where none comes."""
    began = time.perf_counter()
    command = [sys.executable, "-u", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            if any(f" {name} " in line for name in LABEL_NAMES.values()):
                return time.perf_counter() - began
    return time.perf_counter() - began


def _write_run(model: TrainedModel) -> None:
    """The two files that a run leaves."""
    from pneumolib.learning.fitting import save_model

    save_model(model.network, model.folder / MODEL_FILE)
    now = datetime.now(UTC)
    write_result(
        Result(
            schema_version=VERSION, study="bench", run="03_baseline_cnn", notebook="03_baseline_cnn", synthetic=True,
            parameters={"image": IMAGE.model_dump()}, data=DataResult(fingerprint="", images=0, groups=0, left_out=0),
            threshold=ThresholdResult(value=0.5, rule="none", sensitivity=0, specificity=0, chosen_on="validation"),
            calibration=CalibrationResult(**asdict(model.calibration)),
            ood=model.ood,
            model_sha256=file_sha256(model.folder / MODEL_FILE),
            provenance=Provenance(commit=None, dirty=None, started=now, finished=now, seconds=0, python="", platform="",
                                  versions={}, device={}),
        ),
        model.folder,
    )  # fmt: skip


if __name__ == "__main__":
    main()
