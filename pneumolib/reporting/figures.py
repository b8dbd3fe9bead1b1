"""What all figures share: one palette, one way to make axes, and a description in words for those who cannot see them.

Figures keep a white ground on light and dark pages alike, and in print. Colours are from the Okabe-Ito palette, which
most colour-blind readers can tell apart: blue is normal, vermilion is pneumonia, everywhere.
"""

import io
from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pneumolib.data.layout import LABEL_NAMES

NORMAL, PNEUMONIA, NEUTRAL = "#0072B2", "#D55E00", "#4d4d4d"
COLOURS = {0: NORMAL, 1: PNEUMONIA}
NAMES = LABEL_NAMES
KIND_COLOURS = {"normal": NORMAL, "bacteria": PNEUMONIA, "virus": "#E69F00", "pneumonia": PNEUMONIA}
OTHERS = ["#009E73", "#CC79A7", "#56B4E9", "#F0E442"]  # the palette's remaining colours, for kinds and runs without one
DIVERGING = "RdBu_r"  # blue below, red above, white at nothing
DPI = 110


@dataclass(frozen=True)
class Plot:
    """A figure and its description; as the last line of a cell it shows itself as PNG with alt text."""

    figure: Figure
    alt: str

    def _repr_mimebundle_(self, include=None, exclude=None):
        buffer = io.BytesIO()
        FigureCanvasAgg(self.figure).print_png(buffer)  # `savefig` would draw everything twice, once for the layout
        return {"image/png": buffer.getvalue(), "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def new_axes(
    columns: int = 1, width: float = 8, height: float = 3.4, rows: int = 1, style: str = "whitegrid", height_ratios=None
):
    """A figure that pyplot knows nothing of, so that none piles up in a long session, and the list of its axes."""
    with sns.axes_style(style), sns.plotting_context("notebook", font_scale=0.85):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    return figure, list(axes.flat)


def kind_palette(kinds: pd.Series) -> dict[str, str]:
    """A colour for every kind there is, known ones always the same."""
    unknown = [kind for kind in sorted(set(kinds)) if kind not in KIND_COLOURS]
    known = {kind: colour for kind, colour in KIND_COLOURS.items() if kind in set(kinds)}
    return known | {kind: OTHERS[i % len(OTHERS)] for i, kind in enumerate(unknown)}


def by_class(values: pd.Series, form: str) -> str:
    """`1.24 for normal and 1.49 for pneumonia` from values indexed by label."""
    return " and ".join(f"{value:{form}} for {NAMES[label]}" for label, value in values.items())
