"""What may happen to a radiograph between two hospitals: changes of five severities, to measure robustness.

Contract: pixels uint8 (n, height, width, channels) in and out, 0 black and 255 white; channels that are equal stay equal.
Lengths are fractions of the image's side, so that a severity means the same at 64 px as at 224 px; noise, JPEG and
downsampling work on the pixels that the network sees, and there is no such scale for them. Severities 1 and 2 are
differences that exposure and positioning make from day to day, 3 and 4 those between machines and hospitals, and 5
is beyond what a radiographer would keep. What happens to an image is a function of seed, name and its place alone: its
direction (where there are two) and its noise are the same at all severities.
"""

import io
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from pneumolib.data.pixels import as_jpeg, picture_of

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(pixels: np.ndarray, name: str, severity: int, seed: int, first: int = 0) -> np.ndarray:
    """Corrupted copies, of the same shape and type.

    Args:
        pixels: uint8 (n, height, width, 1 or 3).
        name: one of `params.Corruption`; `STRENGTHS` says what it does, and how strongly.
        severity: 1 to 5.
        seed: with the image's place decides direction and noise.
        first: place of the first image, so that images corrupted in portions are as those corrupted at once.
    Raises:
        ValueError: an unknown name or severity.
    """
    if name not in STRENGTHS or severity not in SEVERITIES:
        raise ValueError(f"received {name!r} of severity {severity}; allowed: {', '.join(STRENGTHS)}, of 1 to 5")
    change, strengths = STRENGTHS[name]
    changed, stream = np.empty_like(pixels), zlib.crc32(name.encode())
    for row, image in enumerate(pixels):
        rng = np.random.default_rng([seed, stream, first + row])
        found = np.asarray(change(image, strengths[severity - 1], rng))
        changed[row] = np.clip(np.rint(found), 0, 255).reshape(image.shape)
    return changed


def corruption_samples(image: np.ndarray, names: Sequence[str], seed: int) -> tuple[np.ndarray, list[str]]:
    """One image, uint8 (height, width, channels), under each change, at severities 1, 3 and 5, and a title for each."""
    shown = [(name, severity) for name in names for severity in SEVERITIES[::2]]
    changed = [corrupt(image[None], name, severity, seed)[0] for name, severity in shown]
    return np.stack(changed), [f"{name} {severity}" for name, severity in shown]


# Each change takes an image, uint8 (height, width, channels), its strength and a generator. It gives grey values of any
# type, an array or a picture, which `corrupt` rounds and limits to 0 to 255.


def _gamma(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Darker (exponent above 1) or brighter midtones, black and white as they are: exposure, and a monitor's curve."""
    return (255 * (np.arange(256) / 255) ** _either_way(factor, rng))[image]


def _contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Steeper or flatter around the image's mean: tube voltage, and the window that software chose."""
    mean = image.mean() / 255
    return (255 * ((np.arange(256) / 255 - mean) * _either_way(factor, rng) + mean))[image]


def _noise(image: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise for each pixel, the same in all channels: fewer photons at a lower dose."""
    return image + np.float32(sd) * rng.standard_normal(image.shape[:2], np.float32)[..., None]


def _blur(image: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian blur: a child that moved, a thick screen."""
    height, width = image.shape[:2]
    sigma = (fraction * height, fraction * width, 0)
    return gaussian_filter(image.astype(np.float32), sigma, mode="nearest", truncate=3)


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> Image.Image:
    """Saved as JPEG at the size the network sees, where its blocks of 8 px are coarser than in the file's own size."""
    return Image.open(io.BytesIO(as_jpeg(picture_of(image), int(quality))))


def _rotation(image: np.ndarray, degrees: float, rng: np.random.Generator) -> Image.Image:
    """Turned about the middle, to either side; outside is black."""
    return picture_of(image).rotate(degrees if rng.random() < 0.5 else -degrees, Image.Resampling.BILINEAR)


def _downsampling(image: np.ndarray, kept: float, rng: np.random.Generator) -> Image.Image:
    """Made smaller and large again: a coarse detector, a picture of a picture."""
    whole = picture_of(image)
    small = whole.resize([max(1, round(side * kept)) for side in whole.size], Image.Resampling.BOX)
    return small.resize(whole.size, Image.Resampling.BILINEAR)


def _zoom(image: np.ndarray, factor: float, rng: np.random.Generator) -> Image.Image:
    """Nearer, so that the rim is lost, or farther, with black around: distance and collimation."""
    part = 1 / _either_way(factor, rng)
    return _window(image, part, part)


def _stretch(image: np.ndarray, factor: float, rng: np.random.Generator) -> Image.Image:
    """A part of the height, or of the width, drawn out to the whole: a film of other proportions, pressed into a square."""
    return _window(image, 1 / factor, 1) if rng.random() < 0.5 else _window(image, 1, 1 / factor)


def _margins(image: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """The rim black on all four sides, the rest as it is: collimators, and the edge of a scanned film."""
    dy, dx = (max(1, round(fraction * side)) for side in image.shape[:2])
    changed = np.zeros_like(image)
    changed[dy:-dy, dx:-dx] = image[dy:-dy, dx:-dx]
    return changed


def _window(image: np.ndarray, part_y: float, part_x: float) -> Image.Image:
    """The middle part of height and width at the size of the whole; above 1 it shows black around."""
    height, width = image.shape[:2]
    left, top = width * (1 - part_x) / 2, height * (1 - part_y) / 2
    matrix = (part_x, 0, left, 0, part_y, top)  # from a place in the result to one in the image
    return picture_of(image).transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _either_way(factor: float, rng: np.random.Generator) -> float:
    return factor if rng.random() < 0.5 else 1 / factor


# Framing differs by a few per cent from day to day, a child lies some degrees aslant, and exposure differs by about a third;
# severity 1 is less than that. Severity 3 is about what training in the recommended recipe changes at most (gamma 1.8, contrast
# 1.6, rotation 10 degrees, zoom 0.2, stretch 1.3, margins 0.1, noise 6), and 5 goes well beyond, to where a lung can just
# be recognised at 128 px.
STRENGTHS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "gamma": (_gamma, (1.15, 1.35, 1.6, 2.0, 2.6)),  # exponent, or one over it
    "contrast": (_contrast, (1.15, 1.35, 1.6, 2.0, 2.6)),  # slope around the mean, or one over it
    "noise": (_noise, (3, 6, 10, 16, 25)),  # standard deviation in grey values of 255
    "blur": (_blur, (0.006, 0.009, 0.013, 0.019, 0.027)),  # standard deviation as a fraction of the side
    "jpeg": (_jpeg, (70, 50, 30, 18, 10)),  # JPEG quality
    "rotation": (_rotation, (3, 6, 10, 15, 22)),  # degrees to either side
    "downsampling": (_downsampling, (0.75, 0.55, 0.4, 0.28, 0.2)),  # fraction of the side kept
    "zoom": (_zoom, (1.04, 1.08, 1.15, 1.25, 1.4)),  # factor, or one over it
    "stretch": (_stretch, (1.04, 1.08, 1.15, 1.25, 1.4)),  # factor along one side
    "margins": (_margins, (0.02, 0.04, 0.07, 0.11, 0.16)),  # width of each edge as a fraction of the side
}
