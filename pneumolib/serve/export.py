"""A trained model for other programs: written, checked against Keras on twenty images, and only then put in its place.

`export_network` makes the files in a process of its own. Beside them lies `model.json`: what another program must know.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pneumolib import __version__
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.errors import InputError, ModelError, PneumolibError
from pneumolib.evaluation.calibration import Calibration
from pneumolib.params import ImageParams
from pneumolib.provenance import file_sha256, package_versions
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serve.trained import RESEARCH_ONLY, TrainedModel, find_run, read_trained

METADATA_FILE = "model.json"
MADE_BY = "pneumolib export"
CONTRACT_VERSION = 2  # raised when a key of `model.json` changes its name or meaning
# Of a probability. Deep networks with random weights moved by up to 5e-5, and by 2e-5 within Keras itself when images came one
# by one: sums in another order. What is wrong, and no rounding, moves far more.
TOLERANCE = 1e-4
READERS = {
    "savedmodel": "TensorFlow's SavedModel loader",
    "litert": "LiteRT",
    "onnx": "ONNX Runtime",
    "json": "Keras, built anew from the files",
}
# What a format needs besides Keras and TensorFlow, as pip names it.
PACKAGES = {"litert": ["ai-edge-litert"], "onnx": ["onnx", "onnxruntime", "tf2onnx"]}
_NOTHING = "Nothing was exported"
_LAST_WORDS = 600  # characters
_SYNTHETIC = " Every training image was drawn by a program: what this network says of a patient means nothing."
_NARROW = 0.05  # twenty probabilities within less than this say little of how images are told apart
_VERSIONS = {"tensorflow", "tensorflow-cpu", "keras", "numpy", "pillow", "scikit-image"}  # write files, prepare pixels
_LIMITS = [
    "Drawn radiographs on the CPU of one machine: a wrong conversion shows in them, but other processors, programs "
    "and versions round otherwise.",
    "The check is of the network. Pixels that are prepared in another way give other probabilities, and nothing here "
    "notices; nor does anything warn of images unlike those of training, as `pneumolib predict` does.",
    "How good the network is, and on which images, stands in the MODEL_CARD.md of its run.",
]


def export_run(
    run: str | Path, kind: str, to: Path | None = None, overwrite: bool = False, force: bool = False
) -> Path:
    """Export a run's model and say on the way what is done; returns the folder.

    Args:
        run: its folder, or `study/run`.
        kind: one of `READERS`.
        to: the folder to make; `export/<kind>` in the run's folder by default.
        overwrite: replace an earlier export there. A folder that holds anything else is never replaced.
        force: take a model file that is not the one the run recorded.
    Raises:
        ModelError: a run whose model cannot be used.
        InputError: no such format, a package that is missing, or a folder that is there already or cannot be made.
        PneumolibError: an exporter that fails, or files whose probabilities are not those of Keras.
    """
    _check_format(kind)
    folder = find_run(run)
    target = Path(to).resolve() if to else folder / "export" / kind
    _check_target(target, overwrite)
    model = read_trained(folder, force)
    print(f"{model.name} as {kind}, to {os.path.relpath(target)}", flush=True)
    with _workplace(target) as fresh:
        file = fresh.with_name("probabilities.npz")
        if fault := capture_output("pneumolib.serve.export", str(folder), kind, str(fresh), str(file)):
            raise PneumolibError(
                f"{model.name} cannot be written as {kind} and read again. {_NOTHING}. Last words of the exporter:\n{fault}"
            )
        with np.load(file) as found:
            check = compare(kind, found, model.threshold)
        text = json.dumps(model_metadata(model, kind, fresh, check), indent=1, ensure_ascii=False)
        (fresh / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
    print(
        f"Checked with {READERS[kind]}: {check['images']} drawn radiographs, one by one and together; largest difference of a "
        f"probability from Keras {check['largest_difference']:.1e}, allowed {TOLERANCE:.0e}"
    )
    for warning in check["warnings"]:
        print(f"Warning: {warning}", flush=True)
    return target


def _check_format(kind: str) -> None:
    if kind not in READERS:
        raise InputError(f"--format: received {kind!r}, allowed {', '.join(READERS)}")
    missing = [name for name in PACKAGES.get(kind, ()) if find_spec(name.replace("-", "_")) is None]
    if missing:
        raise InputError(
            f'--format {kind} needs {" and ".join(missing)}, not installed here: pip install "pneumolib[export]"'
        )


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a folder: --to DIR")
    if strange := _strange_files(target):
        raise InputError(f"{target} holds {strange[0]}, which no export wrote; name another folder: --to DIR")
    if target.exists() and not overwrite:
        raise InputError(f"{target} is there already; replace it: --overwrite, or name another folder: --to DIR")


def _strange_files(folder: Path) -> list[str]:
    """The files of a folder that no earlier export wrote there, by its `model.json`."""
    try:
        known = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    ours = isinstance(known, dict) and known.get("made_by") == MADE_BY
    return sorted(set(_files(folder)) - ({METADATA_FILE, *known.get("files", ())} if ours else set()))


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, which takes its place at the end, unless anything was raised."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as fault:
        raise InputError(
            f"{target.parent} cannot be written to: {fault.strerror}. Name another folder: --to DIR"
        ) from fault
    with place as name:
        fresh = Path(name) / "new"  # the temporary folder itself may be read by its owner alone
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(target, Path(name) / "old")
        os.replace(fresh, target)


def capture_output(module: str, *words: str) -> str | None:
    """Run a module in a process of its own, on TensorFlow and the CPU; where it fails, the last words that it said.

    Exporters say a lot, need TensorFlow whatever a network was trained on, and are checked on the CPU, as a GPU rounds otherwise.

    Raises:
        ModelError: the module ended with 2, as for a network that cannot be read.
    """
    own = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", module, *words], env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = done.stdout.decode("utf-8", "replace").strip()[-_LAST_WORDS:] or f"none; it ended with {done.returncode}"
    if done.returncode == ModelError.exit_code:
        raise ModelError(said)
    return said if done.returncode else None


def compare(kind: str, found: Mapping[str, np.ndarray], threshold: float) -> dict[str, Any]:
    """What the comparison with Keras on drawn radiographs gave, and what a user of the export should know of it.

    Args:
        kind: the format's name.
        found: as `export_network.write_and_read` gives it.
        threshold: of the saved network.
    Raises:
        PneumolibError: a probability, or their shape, is not as it must be.
    """
    saved, expected, precisions = found["saved"], found["expected"], found["precisions"].tolist()
    difference = _largest_difference(kind, expected, found["found"])
    lowest, highest, moved = float(expected.min()), float(expected.max()), float(np.abs(saved - expected).max())
    changed, warnings = int(((saved >= threshold) != (expected >= threshold)).sum()), []
    if precisions != ["float32"]:
        warnings.append(
            f"the saved network computes in {' and '.join(precisions)}, the exported one in float32, with the same "
            f"weights: probabilities of the {len(expected)} radiographs moved by up to {moved:.1e}, and "
            f"{changed} predicted class(es) changed. Threshold and calibration were frozen on those of the saved one"
        )
    if highest - lowest < _NARROW:
        warnings.append(
            f"all {len(expected)} probabilities lie between {lowest:.6f} and {highest:.6f}: so near to each other, "
            f"they say little of whether the exported network tells images apart as Keras does"
        )
    return {
        "against": f"Keras {version('keras')}, the same network in float32",
        "reader": READERS[kind],
        "images": len(expected),
        "batches": [1, len(expected)],
        "tolerance": TOLERANCE,
        "largest_difference": difference,
        "probabilities": {"lowest": lowest, "highest": highest},
        "precision": {
            "saved": precisions,
            "exported": "float32",
            "largest_difference": moved,
            "predicted_classes_changed": changed,
        },
        "warnings": warnings,
        "limits": _LIMITS,
    }


def _largest_difference(kind: str, expected: np.ndarray, values: np.ndarray) -> float:
    """Of any probability of the other program from Keras's; float64 (n,) and float32 (2, n, 1)."""
    if values.shape != (2, len(expected), 1) or values.dtype != np.float32:
        raise PneumolibError(
            f"{kind}: the output is {values.dtype} {values.shape[1:]}, expected float32 ({len(expected)}, 1). {_NOTHING}"
        )
    differences = np.nan_to_num(np.abs(values[..., 0].astype(np.float64) - expected), nan=np.inf)
    way, worst = np.unravel_index(differences.argmax(), differences.shape)
    largest = float(differences[way, worst])
    if largest > TOLERANCE:
        raise PneumolibError(
            f"{kind}, {('one by one', 'together')[way]}: {READERS[kind]} gives drawn radiograph {worst + 1} of {len(expected)} a "
            f"probability of {values[way, worst, 0]:.7f} where Keras gives {expected[worst]:.7f}; {largest:.1e} apart, allowed "
            f"{TOLERANCE:.0e}; {int((differences[way] > TOLERANCE).sum())} of them differ. {_NOTHING}"
        )
    return largest


def model_metadata(model: TrainedModel, kind: str, folder: Path, check: dict[str, Any]) -> dict[str, Any]:
    """The contents of `model.json`, plain values.

    Args:
        model: what is exported.
        kind: the format's name.
        folder: holds the exported files and nothing else.
        check: from `compare`.
    """
    image, result, provenance = model.image, model.result, model.result.provenance
    colours = " (red, green, blue)" if image.channels == 3 else ""
    files = {name: folder / name for name in _files(folder)}
    return {
        "made_by": MADE_BY,
        "contract_version": CONTRACT_VERSION,
        "notice": RESEARCH_ONLY + _SYNTHETIC * result.synthetic,
        "format": kind,
        "files": {name: {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for name, f in files.items()},
        "input": {
            "name": "pixels",
            "dtype": "uint8",
            "shape": [None, image.size_px, image.size_px, image.channels],
            "order": f"image, row from the top, column from the left, channel{colours}",
            "values": "0 black to 255 white, as they are: scaling is part of the network",
        },
        "preparation": {"steps": preparation_steps(image), "image": image.model_dump()},
        "output": {
            "name": "probability",
            "dtype": "float32",
            "shape": [None, 1],
            "meaning": "of pneumonia, the network's own, between 0 and 1",
            "labels": {str(label): name for label, name in LABEL_NAMES.items()},
        },
        "threshold": {
            "value": model.threshold,
            "rule": result.threshold.rule,
            "chosen_on": "validation",
            "predicted_class": "pneumonia where the output, as it is and not calibrated, is at or above the value; else normal",
        },
        "calibration": calibration_facts(model.calibration),
        "origin": {
            "study": result.study,
            "run": result.run,
            "synthetic_images": result.synthetic,
            "commit": provenance.commit,
            "uncommitted_changes": provenance.dirty,
            "trained": provenance.finished.isoformat(),
            "trained_with": provenance.versions,
            "data_fingerprint": result.data.fingerprint,
            "weights_sha256": result.facts.get("weights_sha256"),
            "model_file_sha256": file_sha256(model.folder / MODEL_FILE),
        },
        "check": check,
        "versions": {
            "pneumolib": __version__,
            "python": sys.version.split()[0],
            **{name: number for name, number in package_versions().items() if name in _VERSIONS},
            **{name: version(name) for name in PACKAGES.get(kind, ())},
        },
    }


def preparation_steps(image: ImageParams) -> list[str]:
    """How pixels are made of a file, in words and in order, as `data.load_image` makes them."""
    size, kernel = image.size_px, max(1, image.size_px // image.clahe_tiles)
    least = math.ceil(2 * size / (1 - 2 * image.crop_border))
    channels = {
        1: "Make it grey: 0.299 red + 0.587 green + 0.114 blue.",
        3: "Make it RGB; grey goes into all three channels.",
    }
    fits = {
        "pad": "Add black bars at both ends of the shorter side, so that it is a square.",
        "crop": "Cut the largest square out of the middle.",
    }
    equalisations = {
        "hist": "a histogram that is spread evenly (scikit-image's equalize_hist)",
        "clahe": f"CLAHE (scikit-image's equalize_adapthist, kernel_size {kernel}, clip_limit {image.clahe_clip_limit:g})",
    }
    way, quality = equalisations.get(image.equalize), image.reencode_quality
    resize = f"Resize to {size} x {size}, bilinear with antialiasing (Pillow's Image.resize with BILINEAR)"
    resize += ", which changes proportions." if image.fit == "stretch" else "."
    if quality is None:
        resize += (
            f" A JPEG is decoded at 1/2, 1/4 or 1/8 of its size at first, the smallest with no side below {least} "
            f"(Pillow's Image.draft); leaving this out moves grey values slightly."
        )
    steps = [
        "Decode to 8 bits, 0 black to 255 white, turned as EXIF says. 16-bit PNG: the upper 8 of the bits in use. DICOM: "
        "rescale, then VOI LUT or window, MONOCHROME1 turned over. Transparent pixels are black.",
        channels[image.channels],
        quality is not None and f"Save it as JPEG of quality {quality} (Pillow's tables), and read it again.",
        image.crop_border and f"Cut {image.crop_border:g} of width and height off each side.",
        fits.get(image.fit),
        resize,
        way and f"Equalise the grey image by {way}, times 255 and rounded, the same in all channels.",
        "Hand the values over as uint8; do not scale them.",
    ]
    return [step for step in steps if step]


def calibration_facts(calibration: Calibration) -> dict[str, Any]:
    """The frozen map from the output to a calibrated probability, as numbers and as a formula."""
    facts = {
        "method": calibration.method,
        "in_words": calibration.in_words(),
        "chosen_on": calibration.chosen_on,
        "logit": "ln(p / (1 - p)) of the output p",
    }
    if calibration.method == "isotonic":
        corners = {"logits": list(calibration.logits), "probabilities": list(calibration.probabilities)}
        formula = "straight lines through (logits, probabilities); the first and the last probability beyond their ends"
        return facts | corners | {"formula": formula}
    formula = "calibrated = 1 / (1 + exp(-(slope * logit + intercept))); outputs of exactly 0 and 1 stay what they are"
    return facts | {"slope": calibration.slope, "intercept": calibration.intercept, "formula": formula}


if __name__ == "__main__":  # the process that `export_run` starts
    from pneumolib.learning.devices import import_keras

    import_keras()
    from pneumolib.serve.export_network import write_and_read

    try:
        write_and_read(*sys.argv[1:])
    except ModelError as fault:
        print(fault)
        sys.exit(fault.exit_code)
