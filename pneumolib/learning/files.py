"""Which `.keras` files may be loaded: those that hold numbers and a network of Keras's own layers, and nothing that runs.

A `.keras` file is a zip archive of an architecture (JSON) and its weights (HDF5). Loading one builds the classes that the
JSON names, and several kinds of file have made Keras run code or read other files on the way (CVE-2025-1550, CVE-2025-8747,
CVE-2025-9905, CVE-2025-12058). So this module looks at all members, classes and weights first. Keras is asked only then, in
its safe mode.
"""

import json
import re
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pneumolib.errors import ModelError

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
# Every layer of Keras may be loaded but these, which run code or read files that their settings name.
REFUSED_LAYERS = {
    "Lambda": "a Lambda: Python code inside the file, which would run here: have its maker replace it by layers of Keras",
    "TorchModuleWrapper": "a pickle, which runs code when it is loaded",
    "TFSMLayer": "TensorFlow code in another file",
    **dict.fromkeys(["FlaxLayer", "JaxLayer"], "Python code of another library"),
    **dict.fromkeys(["IntegerLookup", "StringLookup", "TextVectorization"], "a vocabulary that another file may hold"),
}
# Optimizers, losses and metrics come with a compiled network inside the network. `[A-Z]` leaves out functions, and the names in
# underscores that Keras treats in other ways.
_ALLOWED = re.compile(
    r"keras\.(layers|initializers|regularizers|constraints|dtype_policies|optimizers(\.schedules)?|losses|metrics):[A-Z][A-Za-z0-9]*"
    r"|keras\.src\.ops\.(numpy|nn|math|image):[A-Z][A-Za-z0-9]*"
    r"|keras\.src\.ops\.core:(Cast|ConvertToTensor|SaturateCast|Slice|StopGradient|Unstack)"  # others of core run functions
    r"|keras(\.models|\.src\.models\.functional|\.src\.models\.sequential)?:(Functional|Sequential|Model)"
    r"|keras:DTypePolicy|keras\.src\.applications\.(convnext:LayerScale|inception_resnet_v2:CustomScaleLayer)"
)
_VALUES = (None, "__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__slice__", "__dtype__")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")  # protocols 2 to 5 say so in their first two bytes
_LARGEST_RATIO, _SPARE = 20, 2**26  # weights are hardly compressible; a bomb begins at a thousand
_LARGEST_CONFIG, _MOST_LAYERS = 2**23, 5000  # the largest of `keras.applications` has a megabyte and 1,039 layers
_LOADING = threading.Lock()


def load_model(file: Path) -> Any:
    """The `keras.Model` of a `.keras` file, not compiled.

    Keras makes room for all weights that the architecture asks for before it reads them. So each one is compared with the
    shapes of what the file holds, where Keras is about to make room for it.

    Raises:
        ModelError: as `check_model_file`, a file that Keras cannot read, or weights that are not finite.
    """
    shapes, missing = check_model_file(file), []
    import keras

    def add_weight(layer, *args, shape=None, **options):
        shape = tuple(shape or ())
        if not shapes[shape]:
            missing.append(f"its layer {layer.name!r} asks for weights of shape {shape}, which the file does not hold")
            raise ModelError(missing[0])
        shapes[shape] -= 1
        return original(layer, *args, shape=shape, **options)

    with _LOADING:  # Keras has one `add_weight` for all threads
        original, keras.Layer.add_weight = keras.Layer.add_weight, add_weight
        try:
            network = keras.saving.load_model(file, compile=False, safe_mode=True)
        # Broad, because what Keras and its backend raise for an architecture that contradicts itself has no common kind.
        except Exception as cause:
            reason = f"refused: {missing[0]}" if missing else f"Keras cannot read it: {cause}"
            raise ModelError(f"{file}: {reason}") from cause
        finally:
            keras.Layer.add_weight = original
    if not all(np.isfinite(weight).all() for weight in network.get_weights()):
        raise ModelError(
            f"{file}: holds weights that are no finite numbers: its training diverged, or the file is damaged"
        )
    return network


def check_model_file(file: Path) -> Counter[tuple[int, ...]]:
    """Refuse a file that holds anything but an architecture of allowed layers and numbers. Nothing of it is run or built.

    Returns:
        how many arrays of each shape the file holds.
    Raises:
        ModelError: no such file, another kind of file, members that do not belong there, a class that is not
            allowed, too many layers, or weights that lead out of the file or are larger than what is stored.
    """
    shapes = Counter()
    try:
        reason = next(_reasons(file, shapes), None)
    # Broad, because zip, JSON and HDF5 each have their own errors for a file that was cut short or tampered with.
    except Exception as fault:
        raise ModelError(f"{file}: cannot be read: {getattr(fault, 'strerror', None) or fault}") from fault
    if reason:
        raise ModelError(f"{file}: refused: {reason}")
    return shapes


def _reasons(file: Path, shapes: Counter) -> Iterator[str]:
    """Why a file must not be loaded. Each part is read only after the parts before it gave no reason."""
    with file.open("rb") as opened:
        start = opened.read(8)
    if _PICKLE.match(start):
        yield "a pickle, which runs whatever code its maker put in. Ask for a .keras file saved with Keras 3"
    if start == b"\x89HDF\r\n\x1a\n":
        yield "HDF5, the format before Keras 3, which may hold Python code. Load it where you trust it, and save it with Keras 3"
    if not start.startswith(b"PK\x03\x04"):
        yield f"no .keras file: it begins with {start!r}"
    with zipfile.ZipFile(file) as archive:
        yield from _member_reasons(archive, file.stat().st_size)
        for name in ("metadata.json", "config.json"):
            config = json.loads(archive.read(name))
            config.pop("compile_config", None)  # not read: it is not compiled
            count = sum(str(entry.get("module")).startswith(("keras.layers", "keras.src")) for entry in _dicts(config))
            if count > _MOST_LAYERS:
                yield f"{name} names {count:,} layers, allowed are {_MOST_LAYERS:,}"
            yield from (f"{name} names {reason}" for reason in class_reasons(config))
        with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as numbers:
            yield from _weight_reasons(numbers, shapes)


def _member_reasons(archive: zipfile.ZipFile, size: int) -> Iterator[str]:
    count = Counter(archive.namelist())
    for name in count.keys() - MEMBERS:
        pickled = _PICKLE.match(archive.open(name).read(2))
        yield f"holds {name}, {'a pickle, which runs code when it is loaded' if pickled else 'which no .keras file needs'}"
    for name in MEMBERS:
        if count[name] != 1:
            yield f"holds {name} {count[name]} times, needed is 1"
        if name.endswith(".json") and (found := archive.getinfo(name).file_size) > _LARGEST_CONFIG:
            yield f"holds {name} of {found:,} bytes, allowed are {_LARGEST_CONFIG:,}"
    total = sum(member.file_size for member in archive.infolist())
    if total > _LARGEST_RATIO * size + _SPARE:
        yield f"{size:,} bytes that would unpack to {total:,}"


def _dicts(value: Any) -> Iterator[dict]:
    """All dictionaries within a value, itself among them."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _dicts(inner)


def class_reasons(config: dict) -> Iterator[str]:
    """The classes in a network's configuration that are not allowed, each with the reason."""
    return (reason for entry in _dicts(config) if (reason := _class_reason(entry)))


def _class_reason(entry: dict) -> str | None:
    """The class that a dictionary names and Keras would build, if it is not allowed."""
    module, kind, registered = (entry.get(key) for key in ("module", "class_name", "registered_name"))
    known = kind in _VALUES if module is None else _ALLOWED.fullmatch(f"{module}:{kind}")
    # Keras looks up the registered name first, which another package may have given to a class of its own.
    if known and registered in (None, kind) and kind not in REFUSED_LAYERS:
        return None
    layer = "Lambda" if "lambda" in str(kind).lower() else str(kind)
    return f"{module}.{kind}, {REFUSED_LAYERS.get(layer, 'which is not part of Keras or not of a network of images')}"


def _weight_reasons(group: h5py.Group, shapes: Counter) -> Iterator[str]:
    """Arrays of numbers are allowed, within the file: no links out, no arrays kept elsewhere or twice, no objects."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield f"its weights hold a link, {group.name}/{name}, to another place"
        item = group[name]
        if h5py.h5o.get_info(item.id).rc > 1:  # a cycle, or one array that fills the memory many times
            yield f"its weights hold {item.name} under several names"
        if isinstance(item, h5py.Group):
            yield from _weight_reasons(item, shapes)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.dtype.kind not in "fiub":
            yield f"{item.name} in its weights is no array of numbers within the file ({item.dtype})"
        elif item.nbytes > item.id.get_storage_size():
            yield f"{item.name} in its weights claims {item.nbytes:,} bytes and holds {item.id.get_storage_size():,}"
        else:
            shapes[item.shape] += 1
