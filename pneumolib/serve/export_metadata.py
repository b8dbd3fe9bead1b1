"""What another program must know of a model that is exported to it: the contents of `model.json`, beside the exported files."""

import json
import math
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pneumolib import __version__
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.evaluation.calibration import Calibration
from pneumolib.params import ImageParams
from pneumolib.provenance import file_sha256, package_versions
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serve.trained import RESEARCH_ONLY, TrainedModel

METADATA_FILE = "model.json"
MADE_BY = "pneumolib export"
CONTRACT_VERSION = 2  # raised when a key of `model.json` changes its name or meaning
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


def strange_files(folder: Path) -> list[str]:
    """The files of a folder that no earlier export wrote there, by its `model.json`."""
    try:
        known = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    ours = isinstance(known, dict) and known.get("made_by") == MADE_BY
    return sorted(set(_files(folder)) - ({METADATA_FILE, *known.get("files", {})} if ours else set()))


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def model_metadata(
    model: TrainedModel, kind: str, folder: Path, check: dict[str, Any], packages: list[str]
) -> dict[str, Any]:
    """The contents of `model.json`, plain values.

    Args:
        model: what is exported.
        kind: the format's name.
        folder: holds the exported files and nothing else.
        check: from `check_facts`.
        packages: those of the format, whose versions are of interest besides the usual ones.
    """
    image, result, (normal, pneumonia) = model.image, model.result, LABEL_NAMES.values()
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
            "predicted_class": f"{pneumonia} where the output, as it is and not calibrated, is at or above the value; else {normal}",
        },
        "calibration": calibration_facts(model.calibration),
        "origin": _origin(model),
        "check": check,
        "versions": {
            "pneumolib": __version__,
            "python": sys.version.split()[0],
            **{name: number for name, number in package_versions().items() if name in _VERSIONS},
            **{name: version(name) for name in packages},
        },
    }


def preparation_steps(image: ImageParams) -> list[str]:
    """How pixels are made of a file, in words and in order, as `data.load_image` makes them."""
    size, kernel = image.size_px, max(1, image.size_px // image.clahe_tiles)
    least = math.ceil(2 * size / (1 - 2 * image.crop_border))
    as_jpeg, quality = image.reencode_quality is not None, image.reencode_quality
    colour = "Make it RGB; grey goes into all three channels."
    grey = "Make it grey: 0.299 red + 0.587 green + 0.114 blue."
    resize = f"Resize to {size} x {size}, bilinear with antialiasing (Pillow's Image.resize with BILINEAR)"
    smaller = (
        f"A JPEG is decoded at 1/2, 1/4 or 1/8 of its size at first, the smallest with no side below {least} "
        f"(Pillow's Image.draft); leaving this out moves grey values slightly."
    )
    ways = {
        "hist": "a histogram that is spread evenly (scikit-image's equalize_hist)",
        "clahe": f"CLAHE (scikit-image's equalize_adapthist, kernel_size {kernel}, clip_limit {image.clahe_clip_limit:g})",
    }
    steps = {
        "Decode to 8 bits, 0 black to 255 white, turned as EXIF says. 16-bit PNG: the upper 8 of the bits in use. DICOM: "
        "rescale, then VOI LUT or window, MONOCHROME1 turned over. Transparent pixels are black.": True,
        grey if image.channels == 1 else colour: True,
        f"Save it as JPEG of quality {quality} (Pillow's tables), and read it again.": as_jpeg,
        f"Cut {image.crop_border:g} of width and height off each side.": image.crop_border,
        "Add black bars at both ends of the shorter side, so that it is a square.": image.fit == "pad",
        "Cut the largest square out of the middle.": image.fit == "crop",
        (f"{resize}, which changes proportions." if image.fit == "stretch" else f"{resize}.")
        + ("" if as_jpeg else f" {smaller}"): True,
        f"Equalise the grey image by {ways.get(image.equalize)}, times 255 and rounded, the same in all channels.": image.equalize
        != "none",
        "Hand the values over as uint8; do not scale them.": True,
    }
    return [step for step, taken in steps.items() if taken]


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


def _origin(model: TrainedModel) -> dict[str, Any]:
    result, provenance = model.result, model.result.provenance
    return {
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
    }


def check_facts(
    reader: str, found: Mapping[str, np.ndarray], threshold: float, difference: float, tolerance: float
) -> dict[str, Any]:
    """What the comparison with Keras on drawn radiographs gave, and what a user of the export should know of it.

    Args:
        reader: the program that read the written files.
        found: as `export_network.write_and_read` gives it.
        difference, tolerance: of a probability from Keras's, the largest one found and the largest allowed.
    """
    saved, expected, precisions = found["saved"], found["expected"], found["precisions"].tolist()
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
        "reader": reader,
        "images": len(expected),
        "batches": [1, len(expected)],
        "tolerance": tolerance,
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
