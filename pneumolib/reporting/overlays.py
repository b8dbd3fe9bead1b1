"""A radiograph with the map of where a network found its evidence laid over it."""

import matplotlib as mpl
import numpy as np
from PIL import Image

COLOUR_MAP = "inferno"  # brightness rises all the way, so that it reads without colour, too
STRONGEST_COVER = 0.6  # how much of the radiograph the map's maximum covers


def strongest_place(saliency: np.ndarray) -> str:
    """Where a map that is not empty has its maximum: `upper left`, `lower`, or `middle`; left and right are the picture's."""
    y, x = np.unravel_index(int(saliency.argmax()), saliency.shape)
    down, across = (int(3 * place / side) for place, side in zip((y, x), saliency.shape, strict=True))
    words = [("upper", "", "lower")[down], ("left", "", "right")[across]]
    return " ".join(word for word in words if word) or "middle"


def overlay(
    pixels: np.ndarray, saliency: np.ndarray, longer_px: int, strongest_cover: float = STRONGEST_COVER
) -> np.ndarray:
    """The map in colour over the radiograph, RGB, uint8 (height, width, 3); where the map is zero the radiograph is as it was.

    Args:
        pixels: uint8 (height, width, 1 or 3).
        saliency: from `learning.grad_cam`, float (height, width), 0 to 1.
        longer_px: the longer side of the result; a small image is enlarged to the same size as a large one.
        strongest_cover: 0 shows the radiograph alone, 1 hides it where the map has its maximum.
    """
    height, width = pixels.shape[:2]
    scale = longer_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = np.asarray(Image.fromarray(pixels.squeeze()).convert("RGB").resize(size, Image.Resampling.BICUBIC), float)
    strength = np.asarray(Image.fromarray(saliency.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    strength = np.clip(strength, 0, 1)
    colours = 255 * mpl.colormaps[COLOUR_MAP](strength)[..., :3]
    cover = strongest_cover * strength[..., None]
    return (grey * (1 - cover) + colours * cover).round().astype(np.uint8)
