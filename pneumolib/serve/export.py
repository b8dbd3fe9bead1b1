"""A trained model for other programs: written, checked against Keras on twenty images, and only then put in its place.

What is asked, compared and put in place; `export_network` makes the files in a process of its own, `export_metadata` writes
`model.json`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pneumolib.errors import InputError, ModelError, PneumolibError
from pneumolib.serve.export_metadata import METADATA_FILE, check_facts, model_metadata, strange_files
from pneumolib.serve.trained import find_run, read_trained

# Of a probability. Deep networks with random weights moved by up to 5e-5, and by 2e-5 within Keras itself when images came one
# by one: sums in another order. What is wrong, and no rounding, moves far more.
TOLERANCE = 1e-4
READERS = {
    "savedmodel": "TensorFlow's SavedModel loader",
    "litert": "LiteRT",
    "onnx": "ONNX Runtime",
    "json": "Keras, built anew from the files",
}
# What a format needs besides Keras and TensorFlow: import name to pip's name.
PACKAGES = {
    "litert": {"ai_edge_litert": "ai-edge-litert"},
    "onnx": {name: name for name in ("onnx", "onnxruntime", "tf2onnx")},
}
_NOTHING = "Nothing was exported"
_LAST_WORDS = 600  # characters


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
    _check_packages(kind)
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
            difference = largest_difference(kind, found)
            check = check_facts(READERS[kind], found, model.threshold, difference, TOLERANCE)
        facts = model_metadata(model, kind, fresh, check, list(PACKAGES.get(kind, {}).values()))
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (fresh / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
    print(
        f"Checked with {READERS[kind]}: {check['images']} drawn radiographs, one by one and together; largest difference of a "
        f"probability from Keras {difference:.1e}, allowed {TOLERANCE:.0e}"
    )
    for warning in check["warnings"]:
        print(f"Warning: {warning}", flush=True)
    return target


def _check_packages(kind: str) -> None:
    if kind not in READERS:
        raise InputError(f"--format: received {kind!r}, allowed {', '.join(READERS)}")
    missing = [name for module, name in PACKAGES.get(kind, {}).items() if find_spec(module) is None]
    if missing:
        raise InputError(
            f'--format {kind} needs {" and ".join(missing)}, not installed here: pip install "pneumolib[export]"'
        )


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a folder: --to DIR")
    if strange := strange_files(target):
        raise InputError(f"{target} holds {strange[0]}, which no export wrote; name another folder: --to DIR")
    if target.exists() and not overwrite:
        raise InputError(f"{target} is there already; replace it: --overwrite, or name another folder: --to DIR")


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


def largest_difference(kind: str, found: dict[str, np.ndarray]) -> float:
    """Of any probability of the other program from Keras's.

    Args:
        found: as `export_network.write_and_read` gives it.
    Raises:
        PneumolibError: the difference, or a shape, is not as it must be.
    """
    expected, values = found["expected"], found["found"]
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


if __name__ == "__main__":  # the process that `export_run` starts
    from pneumolib.learning.devices import import_keras

    import_keras()
    from pneumolib.serve.export_network import write_and_read

    try:
        write_and_read(*sys.argv[1:])
    except ModelError as fault:
        print(fault)
        sys.exit(fault.exit_code)
