"""Errors: radiographs with their Grad-CAM maps as cards, and what such maps do not prove."""

import base64
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from PIL import Image

from pneumolib.data.layout import LABEL_NAMES
from pneumolib.data.pixels import ImageSet, as_jpeg
from pneumolib.evaluation.calibration import uncertainty
from pneumolib.evaluation.intervals import interval_columns, share_limits
from pneumolib.evaluation.metrics import compute_metrics
from pneumolib.reporting.figures import Plot, sample_grid
from pneumolib.reporting.prose import say, templates
from pneumolib.reporting.session import numbered
from pneumolib.text import csv_cell

SIDE_PX = 160  # the longer side of a radiograph on a card
GAP_PX = 4
QUALITY = 72  # JPEG; 60 cards stay well below a megabyte


def selection(
    predictions: pd.DataFrame, threshold: float, limit: int = 60, right: int = 12, seed: int = 1
) -> pd.DataFrame:
    """Which images of one split to show: its errors, the most confident first, and some correct ones of both classes.

    Args:
        predictions: rows of one split, as `predictions.csv` has them.
        threshold: frozen on validation; at or above it the predicted class is pneumonia.
        limit: of errors. Confident is a probability far from the threshold, by the log odds.
        right: number of correct ones, half of them normal, drawn at random; fewer where there are fewer.
        seed: of that draw.
    Returns:
        the columns of `predictions`, then `threshold`, `predicted` (0 or 1), `right` (bool) and `of`, the number of all errors,
        or of all correct ones, that this row was chosen from.
    """
    rows = predictions.assign(threshold=threshold, predicted=(predictions.probability >= threshold).astype(int))
    rows["right"] = rows.predicted == rows.label
    rows["of"] = rows.groupby("right").image_id.transform("size")
    order = np.argsort(uncertainty(rows.probability.to_numpy(), threshold), kind="stable")
    errors = rows.iloc[order][lambda table: ~table.right].head(limit)
    drawn = [
        rows[rows.right & (rows.label == label)].sample(frac=1, random_state=seed).head(places)
        for label, places in ((0, right - right // 2), (1, right // 2))
    ]
    return pd.concat([errors, *drawn], ignore_index=True)


def gallery(images: ImageSet, rows: pd.DataFrame, maps: np.ndarray) -> HTML:
    """A card for each row: the radiograph, under it the same with its map, and image, true and predicted class in words.

    All pictures of the cards, row by row, are also the file `figures/errors.png` or `figures/correct.png`; a table beside
    it, of the same name, says which they are.

    Args:
        images: holds at least the images of `rows`.
        rows: from `selection`, errors or correct ones; all of its columns are needed.
        maps: from `learning.grad_cam`, float (n, height, width), 0 to 1, in the order of `images.table`.
    Raises:
        ValueError: as many maps as images are needed.
        KeyError: a row whose image is not there.
    """
    places = pd.Series(range(len(maps)), index=images.table.image_id)
    if rows.empty:
        return HTML("<p>There is no such image on this split.</p>")
    label, file = numbered("Figure", "correct" if rows.right.all() else "errors")
    pictures, cards = [], []
    for row in rows.itertuples():
        saliency = maps[places[row.image_id]]
        pictures.append(_picture(np.asarray(images.pixels[places[row.image_id]]), saliency))
        place = strongest_place(saliency) if saliency.any() else ""
        cards.append({"row": row, "place": place, "source": jpeg_source(pictures[-1])})
    if file:
        _save(pictures, rows, file)
    return HTML(templates("html").get_template("gallery.html.j2").render(label=label, first=rows.iloc[0], cards=cards))


def jpeg_source(pixels: np.ndarray, quality: int = QUALITY) -> str:
    """A picture (uint8) as the address of an image whose data are inside the page's text."""
    return f"data:image/jpeg;base64,{base64.b64encode(as_jpeg(Image.fromarray(pixels), quality)).decode()}"


def _save(pictures: list[np.ndarray], rows: pd.DataFrame, file: Path) -> None:
    """One sheet of eight pictures a row, and which images they are."""
    wide = min(8, len(pictures))
    pictures = pictures + [np.full_like(pictures[0], 255)] * (-len(pictures) % wide)
    lines = [np.concatenate(pictures[start : start + wide], axis=1) for start in range(0, len(pictures), wide)]
    Image.fromarray(np.concatenate(lines)).save(file.with_suffix(".png"))
    shown = rows[["image_id", "label", "predicted", "probability", "threshold"]].map(csv_cell)
    shown.to_csv(file.with_suffix(".csv"), index=False)


def _picture(pixels: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Radiograph over map, RGB, uint8."""
    plain, covered = (overlay(pixels, saliency, SIDE_PX, cover) for cover in (0, STRONGEST_COVER))
    gap = np.full((GAP_PX, *plain.shape[1:]), 128, np.uint8)  # neither glaring on a dark page nor lost on a light one
    return np.concatenate([plain, gap, covered])


def explanation_words(randomisation: dict, occlusion: pd.DataFrame) -> Markdown:
    """How to read the maps, and what they do not prove, with the figures of the two checks.

    Args:
        randomisation: from `learning.randomisation_check`.
        occlusion: from `learning.occlusion_check`.
    """
    covered = occlusion[["logit_centre_covered", "logit_border_covered"]]
    by_class = covered.sub(occlusion.logit, axis=0).groupby(occlusion.label).mean().to_dict()
    # The mean size of a rank correlation of two unrelated rows of so many values, which is nearly normal.
    chance = np.sqrt(2 / (np.pi * max(randomisation["height"] * randomisation["width"] - 1, 1)))
    return say("gallery.explanation", randomisation, occlusion_facts(occlusion), by_class, float(chance))


def review_grid(rows: pd.DataFrame, parts: Sequence[ImageSet]) -> Plot | HTML:
    """The images of `evaluation.label_review`, without a map, which would suggest a finding.

    Args:
        rows: the first ones.
        parts: validation and test.
    """
    if rows.empty:
        return HTML("")
    places = {name: (images, place) for images in parts for place, name in enumerate(images.table.image_id)}
    pixels = np.stack([images.pixels[place] for images, place in (places[name] for name in rows.image_id)])
    titles = [f"{r.image_id.split('/')[-1]}\n{LABEL_NAMES[r.label]}, {r.probability:.2f}" for r in rows.itertuples()]
    return sample_grid(pixels, titles, what="Images to review with label and mean probability")


def occlusion_facts(table: pd.DataFrame) -> dict:
    """What `learning.occlusion_check` found, as plain values for `result.json`.

    `images`; `centre` and `border`, the mean move of the logit, up or down, when that part is covered; `border_more`, images
    whose logit the border moves more, and `border_share` of all with its limits, `border_apart` less one half; and, with both
    classes, `auroc`, `auroc_centre_covered`, `auroc_border_covered`.
    """
    moved = {part: (table[f"logit_{part}_covered"] - table.logit).abs() for part in ("centre", "border")}
    facts = {"images": len(table), **{part: float(change.mean()) for part, change in moved.items()}}
    more = (moved["border"] > moved["centre"]).to_numpy()
    share = share_limits(more, table.group_id.to_numpy())
    facts["border_more"] = int(more.sum())
    facts |= interval_columns("border_share", share) | interval_columns("border_apart", [end - 0.5 for end in share])
    if table.label.nunique() == 2:
        for name in ("", "_centre_covered", "_border_covered"):
            facts[f"auroc{name}"] = float(compute_metrics(table.label, table[f"logit{name}"], 0)["auroc"])
    return facts


COLOUR_MAP = "inferno"  # brightness rises all the way, so that it reads without colour, too
STRONGEST_COVER = 0.6  # how much of the radiograph the map's maximum covers


def strongest_place(saliency: np.ndarray) -> str:
    """Where a map that is not empty has its maximum: `upper left`, `lower`, or `middle`; left and right are the picture's."""
    y, x = np.unravel_index(int(saliency.argmax()), saliency.shape)
    down, across = (int(3 * place / side) for place, side in zip((y, x), saliency.shape, strict=True))
    words = [("upper", "", "lower")[down], ("left", "", "right")[across]]
    return " ".join(word for word in words if word) or "middle"


def overlay(pixels: np.ndarray, saliency: np.ndarray, longer_px: int, strongest: float = STRONGEST_COVER) -> np.ndarray:
    """The map in colour over the radiograph, RGB, uint8 (height, width, 3); where the map is zero the radiograph is as it was.

    Args:
        pixels: uint8 (height, width, 1 or 3).
        saliency: from `learning.grad_cam`, float (height, width), 0 to 1.
        longer_px: the longer side of the result; a small image is enlarged to the same size as a large one.
        strongest: 0 shows the radiograph alone, 1 hides it where the map has its maximum.
    """
    height, width = pixels.shape[:2]
    scale = longer_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = np.asarray(Image.fromarray(pixels.squeeze()).convert("RGB").resize(size, Image.Resampling.BICUBIC), float)
    strength = np.asarray(Image.fromarray(saliency.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    strength = np.clip(strength, 0, 1)
    colours = 255 * mpl.colormaps[COLOUR_MAP](strength)[..., :3]
    cover = strongest * strength[..., None]
    return (grey * (1 - cover) + colours * cover).round().astype(np.uint8)
