"""What the page says and shows of a score: sentences, bars, pictures as data, and the table to take away. No Streamlit here.

Pictures travel inside the page's own text and not as files of the server, which any visitor could ask for.
"""

import base64
import csv
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from pneumolib.data.pixels import equalize, load_image
from pneumolib.data.sources import LABEL_NAMES
from pneumolib.params import ImageParams
from pneumolib.reporting.figures import COLOURS
from pneumolib.reporting.overlays import strongest_place
from pneumolib.reporting.results import Result, in_words
from pneumolib.serving.outputs import inert
from pneumolib.serving.scoring import Scored

SHOWN_PX = 448  # side of a picture on the page
WAYS = {"none": "as read", "hist": "histogram equalisation", "clahe": "CLAHE"}
COLUMNS = ("image", "probability", "calibrated_probability", "call", "threshold", "run", "warnings", "error")


def percent(share: float) -> str:
    """`93.1%`; never 0.0% or 100.0%, which no network can claim."""
    if share < 0.0005:
        return "below 0.1%"
    return "above 99.9%" if share >= 0.9995 else f"{share:.1%}"


def call_words(scored: Scored, threshold: float) -> str:
    """One sentence: probability, threshold, call."""
    side = "at or above" if scored.call == LABEL_NAMES[1] else "below"
    return (
        f"The network gives pneumonia a probability of {percent(scored.probability)}. That is {side} the threshold of "
        f"{percent(threshold)}, which was chosen on validation images and frozen: it calls this image {scored.call}."
    )


def calibrated_words(scored: Scored) -> str:
    """What the calibrated probability is, and what it is not."""
    return (
        f"Calibrated: {percent(scored.calibrated)}. Of validation images with this value about that share had pneumonia; it "
        "holds where pneumonia is as frequent as among those. The threshold belongs to the network's own probability."
    )


def run_words(result: Result) -> str:
    """What kind of network answers: its run, how many images it learned from, how good it was on test."""
    images = f"{result.data.images:,} {'drawn images' if result.synthetic else 'radiographs'}"
    words = f"{result.study}/{result.run}, made from {images}."
    if auroc := result.own("auroc"):
        words += f" AUROC on its test images: {in_words(auroc)}."
    return words


def bar(scored: Scored, threshold: float) -> str:
    """HTML: the probability as a bar from 0 to 100%, the threshold as a line across it; one picture for a screen reader."""
    said = f"Probability of pneumonia {percent(scored.probability)}, threshold {percent(threshold)}"
    return (
        f'<div class="pn-bar" role="img" aria-label="{said}">'
        f'<span class="pn-fill" style="width: {100 * scored.probability:.2f}%; background: {_colour(scored)}"></span>'
        f'<span class="pn-threshold" style="left: {100 * threshold:.2f}%"></span></div>'
    )


def scale(threshold: float) -> str:
    """HTML: what stands below a bar, its ends and the threshold's place; for eyes only."""
    # Beside the line on the side that has room.
    place = f"left: {100 * threshold:.2f}%" if threshold < 0.5 else f"right: {100 - 100 * threshold:.2f}%"
    return (
        f'<div class="pn-scale" aria-hidden="true"><span style="{place}">threshold {percent(threshold)}</span></div>'
        '<div class="pn-ends" aria-hidden="true"><span>0%, normal</span><span>pneumonia, 100%</span></div>'
    )


def rows(scored: Sequence[Scored], threshold: float) -> str:
    """HTML: a list of all images, each with its bar, or with the reason why there is none."""
    return f'<ul class="pn-rows" aria-label="All files">{"".join(_row(one, threshold) for one in scored)}</ul>'


def _row(one: Scored, threshold: float) -> str:
    name = f'<span class="pn-name">{escape(one.name)}</span>'
    if one.error:
        return f'<li>{name}<span class="pn-error">Not read: {escape(one.error)}</span></li>'
    unlike = " · unlike the training images" if one.warnings else ""
    said = f'<span class="pn-call">{badge(one)} {percent(one.probability)}{unlike}</span>'
    return f"<li>{name}{said}{bar(one, threshold)}</li>"


def badge(scored: Scored) -> str:
    """HTML: the call in words behind its colour."""
    return f'<span class="pn-dot" style="background: {_colour(scored)}"></span><strong>{scored.call}</strong>'


def _colour(scored: Scored) -> str:
    return COLOURS[label_of(scored)]


def label_of(scored: Scored) -> int:
    """1 for a call of pneumonia, 0 for normal."""
    return int(scored.call == LABEL_NAMES[1])


def large(raw: bytes, params: ImageParams) -> np.ndarray:
    """What the network sees of a file, but not equalised and `SHOWN_PX` wide, uint8 (height, width, channels)."""
    return load_image(raw, params.model_copy(update={"size_px": SHOWN_PX, "equalize": "none"}))


def equalised(pixels: np.ndarray, way: str) -> np.ndarray:
    """Those pixels in one of `WAYS`, with the settings that studies have unless they say otherwise."""
    return equalize(pixels, ImageParams(equalize=way))


def picture(pixels: np.ndarray, alt: str, caption: str = "") -> str:
    """HTML: a figure whose image is inside the text."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="pn-figure"><img alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">{below}</figure>'


def strongest(saliency: np.ndarray) -> str:
    """Where a map has its maximum, in words; left and right are those of the picture."""
    if not saliency.any():
        return "The map (Grad-CAM) is empty: nothing in the image speaks for the call, which can rest on something missing."
    place = strongest_place(saliency)
    return f"The map is strongest {'in' if place == 'middle' else 'at'} the {place} of the picture."


def table(scored: Sequence[Scored], threshold: float, run: str) -> str:
    """All images as CSV with a head of `COLUMNS`; numbers in full, empty where there are none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in scored:
        words = one.name, " ".join(one.warnings), one.error or ""
        name, warned, error = (inert(word) for word in words)
        numbers = ["" if value is None else repr(value) for value in (one.probability, one.calibrated)]
        writer.writerow([name, *numbers, one.call or "", repr(threshold), inert(run), warned, error])
    return file.getvalue()
