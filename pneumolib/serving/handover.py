"""What another program must know of a model that is handed to it: the contents of `model.json`, beside the exported files."""

import json
import math
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pneumolib import __version__
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.evaluation.calibration import Calibration
from pneumolib.params import ImageParams
from pneumolib.provenance import file_sha256, package_versions
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serving.trained import RESEARCH_ONLY, TrainedModel

HANDOVER_FILE = "model.json"
MADE_BY = "pneumolib export"
CONTRACT_VERSION = 1  # raised when a key of `model.json` changes its meaning
_SYNTHETIC = " Every training image was drawn by a program: what this network says of a patient means nothing."
_NARROW = 0.05  # twenty probabilities within less than this say little of how images are told apart


@dataclass(frozen=True)
class Checked:
    """What the comparison with Keras on drawn radiographs gave.

    Attributes:
        reader: the program that read the written files.
        images, batches: how many radiographs, and in batches of which sizes.
        tolerance: largest difference of a probability that is allowed.
        difference: the largest one found.
        lowest, highest: of the probabilities.
        precisions: what the saved network computes in; the exported one computes in float32.
        moved: largest difference between the saved network's probabilities and the exported one's.
        calls_moved: how many of the images are called otherwise by the two.
    """

    reader: str
    images: int
    batches: tuple[int, ...]
    tolerance: float
    difference: float
    lowest: float
    highest: float
    precisions: tuple[str, ...]
    moved: float
    calls_moved: int

    @property
    def rounded_otherwise(self) -> bool:
        """Whether the saved network computes in another precision than the exported one."""
        return self.precisions != ("float32",)

    def in_words(self) -> list[str]:
        """What was found, and each warning, a line each."""
        found = (
            f"Checked with {self.reader}: {self.images} drawn radiographs, one by one and together; largest difference of a "
            f"probability from Keras {self.difference:.1e}, allowed {self.tolerance:.0e}"
        )
        return [found, *(f"Warning: {text}" for text in self.warnings())]

    def warnings(self) -> list[str]:
        """What a user of the export should know of its check, a sentence each."""
        texts = []
        if self.rounded_otherwise:
            texts.append(
                f"the saved network computes in {' and '.join(self.precisions)}, the exported one in float32, with the same "
                f"weights: probabilities of the {self.images} radiographs moved by up to {self.moved:.1e}, and "
                f"{self.calls_moved} call(s) changed. Threshold and calibration were frozen on those of the saved one"
            )
        if self.highest - self.lowest < _NARROW:
            texts.append(
                f"all {self.images} probabilities lie between {self.lowest:.6f} and {self.highest:.6f}: so near to each other, "
                f"they say little of whether the exported network tells images apart as Keras does"
            )
        return texts


def strange_files(folder: Path) -> list[str]:
    """The files of a folder that no earlier export wrote there, by its `model.json`."""
    try:
        known = json.loads((folder / HANDOVER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    ours = isinstance(known, dict) and known.get("made_by") == MADE_BY
    return sorted(set(_files(folder)) - ({HANDOVER_FILE, *known.get("files", {})} if ours else set()))


def handover(model: TrainedModel, kind: str, folder: Path, checked: Checked, packages: list[str]) -> dict[str, Any]:
    """The contents of `model.json`, plain values.

    Args:
        model: what is exported.
        kind: the format's name.
        folder: holds the exported files and nothing else.
        checked: what their check gave.
        packages: those of the format, whose versions are of interest besides the usual ones.
    """
    return {
        "made_by": MADE_BY,
        "contract_version": CONTRACT_VERSION,
        "notice": RESEARCH_ONLY + _SYNTHETIC * model.result.synthetic,
        "format": kind,
        "files": {name: _facts_of(folder / name) for name in _files(folder)},
        "input": _input(model.image),
        "preparation": {"steps": preparation_steps(model.image), "image": model.image.model_dump()},
        "output": {
            "name": "probability", "dtype": "float32", "shape": [None, 1],
            "meaning": "of pneumonia, the network's own, between 0 and 1", "labels": {str(label): name for label, name in LABEL_NAMES.items()},
        },
        "threshold": {
            "value": model.threshold, "rule": model.result.threshold.rule, "chosen_on": "validation",
            "call": f"{LABEL_NAMES[1]} where the output, as it is and not calibrated, is at or above the value; else {LABEL_NAMES[0]}",
        },
        "calibration": calibration_facts(model.calibration),
        "origin": _origin(model),
        "check": _check(checked),
        "versions": _versions(packages),
    }  # fmt: skip


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _facts_of(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _input(image: ImageParams) -> dict[str, Any]:
    return {
        "name": "pixels",
        "dtype": "uint8",
        "shape": [None, image.size_px, image.size_px, image.channels],
        "order": "image, row from the top, column from the left, channel" + (" (red, green, blue)" * (image.channels == 3)),
        "values": "0 black to 255 white, as they are: scaling is part of the network",
    }  # fmt: skip


def preparation_steps(image: ImageParams) -> list[str]:
    """How pixels are made of a file, in words and in order, as `data.load_image` makes them."""
    grey = image.channels == 1
    return [
        "Decode to 8 bits, 0 black to 255 white, turned as EXIF says. 16-bit PNG: the upper 8 of the bits in use. DICOM: "
        "rescale, then VOI LUT or window, MONOCHROME1 turned over. Transparent pixels are black.",
        "Make it grey: 0.299 red + 0.587 green + 0.114 blue." if grey else "Make it RGB; grey goes into all three channels.",
        *_cures(image),
        _resize(image),
        *_equalisation(image),
        "Hand the values over as uint8; do not scale them.",
    ]  # fmt: skip


def _cures(image: ImageParams) -> list[str]:
    steps = []
    if image.reencode_quality is not None:
        steps.append(f"Save it as JPEG of quality {image.reencode_quality} (Pillow's tables), and read it again.")
    if image.crop_border:
        steps.append(f"Cut {image.crop_border:g} of width and height off each side.")
    if image.fit == "pad":
        steps.append("Add black bars at both ends of the shorter side, so that it is a square.")
    if image.fit == "crop":
        steps.append("Cut the largest square out of the middle.")
    return steps


def _resize(image: ImageParams) -> str:
    size, distorted = image.size_px, ", which changes proportions" if image.fit == "stretch" else ""
    step = f"Resize to {size} x {size}, bilinear with antialiasing (Pillow's Image.resize with BILINEAR){distorted}."
    if image.reencode_quality is not None:
        return step
    least = math.ceil(2 * size / (1 - 2 * image.crop_border))
    return (
        f"{step} A JPEG is decoded at 1/2, 1/4 or 1/8 of its size at first, the smallest with no side below {least} "
        f"(Pillow's Image.draft); leaving this out moves grey values slightly."
    )


def _equalisation(image: ImageParams) -> list[str]:
    tile = max(1, image.size_px // image.clahe_tiles)
    ways = {
        "hist": "a histogram that is spread evenly (scikit-image's equalize_hist)",
        "clahe": f"CLAHE (scikit-image's equalize_adapthist, kernel_size {tile}, clip_limit {image.clahe_clip_limit:g})",
    }
    if image.equalize == "none":
        return []
    return [f"Equalise the grey image by {ways[image.equalize]}, times 255 and rounded, the same in all channels."]


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


def _check(checked: Checked) -> dict[str, Any]:
    return {
        "against": f"Keras {version('keras')}, the same network in float32",
        "reader": checked.reader,
        "images": checked.images,
        "batches": list(checked.batches),
        "tolerance": checked.tolerance,
        "largest_difference": checked.difference,
        "probabilities": {"lowest": checked.lowest, "highest": checked.highest},
        "precision": {
            "saved": list(checked.precisions), "exported": "float32",
            "largest_difference": checked.moved, "calls_changed": checked.calls_moved,
        },
        "warnings": checked.warnings(),
        "limits": [
            "Drawn radiographs on the CPU of one machine: a wrong conversion shows in them, but other processors, programs "
            "and versions round otherwise.",
            "The check is of the network. Pixels that are prepared in another way give other probabilities, and nothing here "
            "notices; nor does anything warn of images unlike those of training, as `pneumolib predict` does.",
            "How good the network is, and on which images, stands in the MODEL_CARD.md of its run.",
        ],
    }  # fmt: skip


def _versions(packages: list[str]) -> dict[str, str]:
    """Of what wrote the files and of what prepares pixels."""
    used = {"tensorflow", "tensorflow-cpu", "keras", "numpy", "pillow", "scikit-image"}
    found = {name: number for name, number in package_versions().items() if name in used}
    python = sys.version.split()[0]
    return {"pneumolib": __version__, "python": python} | found | {name: version(name) for name in packages}
