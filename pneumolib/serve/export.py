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
from pneumolib.errors import InputError, ModelError, PneumolibError, disk_words
from pneumolib.params import ImageParams
from pneumolib.provenance import file_sha256, package_versions
from pneumolib.reporting.prose import sentence, templates
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serve.trained import RESEARCH_ONLY, TrainedModel, find_run, read_trained

METADATA_FILE = "model.json"
MADE_BY = "pneumolib export"
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
_NARROW = 0.05  # twenty probabilities within less than this say little of how images are told apart


def export_run(run: str, kind: str, to: Path | None = None, overwrite: bool = False, force: bool = False) -> Path:
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
    if kind not in READERS:
        raise InputError(f"--format: received {kind!r}, allowed {', '.join(READERS)}")
    if missing := " and ".join(name for name in PACKAGES.get(kind, ()) if find_spec(name.replace("-", "_")) is None):
        raise InputError(f'--format {kind} needs {missing}, not installed here: pip install "pneumolib[export]"')
    folder = find_run(run)
    target = Path(to).resolve() if to else folder / "export" / kind
    _check_target(target, overwrite)
    model = read_trained(folder, force)
    print(f"{model.name} as {kind}, to {os.path.relpath(target)}", flush=True)
    with _workplace(target) as fresh:
        file = fresh.with_name("probabilities.npz")
        if fault := capture_output("pneumolib.serve.export_network", str(folder), kind, str(fresh), str(file)):
            words = disk_words(fault.splitlines()[-1]) or f"Last words of the exporter:\n{fault}"
            raise PneumolibError(f"{model.name} cannot be written as {kind} and read again. {_NOTHING}. {words}")
        with np.load(file) as found:
            check = compare(kind, found, model.threshold.value)
        text = json.dumps(model_metadata(model, kind, fresh, check), indent=1, ensure_ascii=False)
        (fresh / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
    print(
        f"Checked with {READERS[kind]}: {check['images']} drawn radiographs, one by one and together; largest difference of a "
        f"probability from Keras {check['largest_difference']:.1e}, allowed {TOLERANCE:.0e}"
    )
    for warning in check["warnings"]:
        print(f"Warning: {warning}", flush=True)
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a folder: --to DIR")
    if strange := sorted(set(_files(target)) - _exported(target)):
        raise InputError(f"{target} holds {strange[0]}, which no export wrote; name another folder: --to DIR")
    if target.exists() and not overwrite:
        raise InputError(f"{target} is there already; replace it: --overwrite, or name another folder: --to DIR")


def _exported(folder: Path) -> set[str]:
    """The files that an earlier export wrote there, by its `model.json`."""
    try:
        known = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
        return {METADATA_FILE, *known["files"]} if known["made_by"] == MADE_BY else set()
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, which takes its place at the end, unless anything was raised."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as fault:
        raise InputError(f"{target.parent} cannot be written to: {fault.strerror}. Name another: --to DIR") from fault
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
    saved, expected, values = (found[name] for name in ("saved", "expected", "found"))
    if values.shape != (2, len(expected), 1) or values.dtype != np.float32:
        raise PneumolibError(
            f"{kind}: the output is {values.dtype} {values.shape[1:]}, expected float32 ({len(expected)}, 1). {_NOTHING}"
        )
    differences = np.nan_to_num(np.abs(values[..., 0].astype(np.float64) - expected), nan=np.inf).max(axis=0)
    if differences.max() > TOLERANCE:
        raise PneumolibError(
            f"{kind}: {READERS[kind]} gives {int((differences > TOLERANCE).sum())} of {len(expected)} drawn radiographs another "
            f"probability than Keras: up to {differences.max():.1e} apart, allowed {TOLERANCE:.0e}. {_NOTHING}"
        )
    check = {
        "images": len(expected),
        "largest_difference": float(differences.max()),
        "lowest": float(expected.min()),
        "highest": float(expected.max()),
        "precisions": found["precisions"].tolist(),
        "moved": float(np.abs(saved - expected).max()),
        "changed": int(((saved >= threshold) != (expected >= threshold)).sum()),
    }
    words = sentence("export.warnings", check=check, narrow=check["highest"] - check["lowest"] < _NARROW)
    return check | {"warnings": _items(words)}


def _items(text: str) -> list[str]:
    """The items of a list in Markdown."""
    return text.removeprefix("- ").split("\n- ") if text else []


def model_metadata(model: TrainedModel, kind: str, folder: Path, check: dict[str, Any]) -> dict[str, Any]:
    """The contents of `model.json`, plain values.

    Args:
        model: what is exported.
        kind: the format's name.
        folder: holds the exported files and nothing else.
        check: from `compare`.
    """
    files = {name: folder / name for name in _files(folder)}
    template = templates("plain", Path(__file__).parent).get_template("model.json.j2")
    text = template.render(
        made_by=MADE_BY,
        notice=RESEARCH_ONLY,
        kind=kind,
        files={name: {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for name, f in files.items()},
        model=model,
        steps=preparation_steps(model.image),
        model_file_sha256=file_sha256(model.folder / MODEL_FILE),
        check=check | {"reader": READERS[kind], "tolerance": TOLERANCE, "keras": version("keras")},
        versions={"pneumolib": __version__, "python": sys.version.split()[0]}
        | package_versions()
        | {name: version(name) for name in PACKAGES.get(kind, ())},
    )
    return json.loads(text)


def preparation_steps(image: ImageParams) -> list[str]:
    """How pixels are made of a file, in words and in order, as `data.load_image` makes them."""
    kernel = max(1, image.size_px // image.clahe_tiles)
    least = math.ceil(2 * image.size_px / (1 - 2 * image.crop_border))
    return _items(sentence("export.preparation", image=image, kernel=kernel, least=least))
