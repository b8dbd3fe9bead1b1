"""What all figures share, and the figures of networks and trainings.

Figures keep a white ground on light and dark pages alike, and in print. Colours are from the Okabe-Ito palette, which
most colour-blind readers can tell apart: blue is normal, vermilion is pneumonia, everywhere.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def reach(table: pd.DataFrame, name: str) -> list[pd.Series]:
    """How far an error bar reaches below and above column `name`, whose limits are `<name>_low` and `<name>_high`.

    A bootstrap's interval need not hold the value itself: the bar then has one arm.
    """
    value, low, high = (table[f"{name}{end}"].astype(float) for end in ("", "_low", "_high"))
    return [(value - low).clip(lower=0), (high - value).clip(lower=0)]


def dots(ax: Axes, table: pd.DataFrame, name: str, labels: Iterable[str], shift: float = 0.0, **style) -> None:
    """A row for each row of `table`: column `name` as a dot with its interval; `shift` moves them within their rows."""
    places = np.arange(len(table))
    style = {"fmt": "o", "color": NORMAL, "capsize": 3} | style
    ax.errorbar(table[name].astype(float), places + shift, xerr=reach(table, name), **style)
    ax.set(yticks=places, yticklabels=labels, ylim=(len(table) - 0.5, -0.5))


def curve_with_band(ax: Axes, band: pd.DataFrame, colour: str, label: str) -> None:
    """A curve with its band, from rows of `evaluation.curve_bands`: `x, y, low, high`."""
    ax.plot(band.x, band.y, color=colour, label=label)
    ax.fill_between(band.x, band.low.astype(float), band.high.astype(float), color=colour, alpha=0.15, lw=0)


def reliability_curve(ax: Axes, bins: pd.DataFrame, title: str, colour: str) -> str:
    """Share with pneumonia by mean probability, from `evaluation.reliability`, beside the diagonal; returns it in words."""
    ax.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.8, ls=":")
    arms = np.clip([bins.observed - bins.low, bins.high - bins.observed], 0, None)
    ax.errorbar(bins.probability, bins.observed, yerr=arms, fmt="o-", color=colour, lw=1, capsize=3, ms=5)
    ax.set_title(title)
    return "; ".join(f"{b.probability:.2f}: {b.observed:.2f} of {b.images}" for b in bins.itertuples())


def stacked_scores(ax: Axes, parts: dict[str, pd.Series], colours: Iterable[str], lines: dict[str, float]) -> None:
    """A histogram of probabilities, one colour a part, its number of images beside its name, and thresholds as lines."""
    labels = [f"{name} ({len(part)})" for name, part in parts.items()]
    bins = np.linspace(0, 1, 41)
    ax.hist([*parts.values()], bins=bins, stacked=True, color=[*colours], label=labels, edgecolor="white", lw=0.3)
    for (name, value), style in zip(lines.items(), ("--", ":"), strict=False):
        ax.axvline(value, color=NEUTRAL, lw=1.6, ls=style, label=name)
    ax.set(xlim=(0, 1))
    legend_beside(ax)


def legend_beside(ax: Axes) -> None:
    """The legend to the right of the panel."""
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def kind_palette(kinds: pd.Series) -> dict[str, str]:
    """A colour for every kind there is, known ones always the same."""
    unknown = [kind for kind in sorted(set(kinds)) if kind not in KIND_COLOURS]
    known = {kind: colour for kind, colour in KIND_COLOURS.items() if kind in set(kinds)}
    return known | {kind: OTHERS[i % len(OTHERS)] for i, kind in enumerate(unknown)}


def by_class(values: pd.Series, form: str) -> str:
    """`1.24 for normal and 1.49 for pneumonia` from values indexed by label."""
    return " and ".join(f"{value:{form}} for {NAMES[label]}" for label, value in values.items())


FROZEN, EMPTY = "#9fb8c9", "#e3e3e3"  # blocks of a network


def sample_grid(pixels: np.ndarray, titles: Sequence[str], columns: int = 6, what: str = "Sample images") -> Plot:
    """Images as the network sees them; pixels uint8 (n, height, width, channels), a title each."""
    rows = -(-len(pixels) // columns)
    figure, axes = new_axes(columns, width=9, height=1.75 * rows, rows=rows, style="white")
    for ax in axes:
        ax.set_axis_off()
    for ax, image, title in zip(axes, pixels, titles, strict=False):
        ax.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=7)
    words = "; ".join(title.replace("\n", ", ") for title in titles)
    return Plot(figure, f"{what}: {len(pixels)} radiographs in a grid: {words}.")


def network_diagram(blocks: pd.DataFrame) -> Plot:
    """A network from its input, on top, to its output: a bar a block, as wide as its feature map, by `network_blocks`."""
    figure, (ax,) = new_axes(width=9.5, height=0.5 * len(blocks) + 0.8, style="white")
    colours = [_block_colour(block) for block in blocks.itertuples()]
    widths = np.maximum(np.sqrt(blocks.width / blocks.width.max()), 0.02)
    places = np.arange(len(blocks))
    ax.barh(places, widths, left=-widths / 2, height=0.7, color=colours, edgecolor="white")
    for place, block in zip(places, blocks.itertuples(), strict=True):
        ax.text(-0.56, place, f"{block.part}: {block.kinds}", ha="right", va="center", fontsize=8)
        ax.text(0.56, place, f"{block.output}{_block_weights(block)}", ha="left", va="center", fontsize=8)
    for colour, name in ((NORMAL, "trained"), (FROZEN, "frozen"), (EMPTY, "no weights")):
        ax.bar(0, 0, color=colour, label=name)
    ax.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.01))
    ax.set(xlim=(-2.2, 1.9), ylim=(len(blocks) - 0.4, -0.6))
    ax.set_axis_off()
    words = "; ".join(f"{b.part}, {b.kinds}, {b.output}{_block_weights(b)}" for b in blocks.itertuples())
    return Plot(figure, f"The network from input to output in {len(blocks)} blocks: {words}.")


def _block_colour(block) -> str:
    return EMPTY if not block.parameters else NORMAL if block.trainable else FROZEN


def _block_weights(block) -> str:
    """`, 1,234 weights, 17 of them trained`; empty for a block without weights."""
    if not block.parameters:
        return ""
    trained = {0: ", frozen", block.parameters: ", trained"}.get(block.trainable, f", {block.trainable:,} trained")
    return f", {block.parameters:,} weights{trained}"


def learning_curves(history: pd.DataFrame) -> Plot:
    """Loss, AUROC, precision (PPV) and recall (sensitivity) by epoch, training and validation; the kept epoch is marked."""
    figure, axes = new_axes(2, height=6.2, rows=2)
    best = history[history.kept].iloc[-1] if history.kept.any() else history.iloc[-1]
    panels = {
        "loss": "loss",
        "auroc": "AUROC",
        "ppv": "precision (PPV) at 0.5",
        "sensitivity": "recall (sensitivity) at 0.5",
    }
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
        ax.plot(history.epoch, history[name], color=NEUTRAL, ls="--", label="training")
        ax.plot(history.epoch, history[f"val_{name}"], color=NORMAL, label="validation")
        ax.axvline(
            best.epoch, color=PNEUMONIA, lw=1, label=f"{'kept: ' if best.kept else 'last: '}epoch {best.epoch:.0f}"
        )
        ax.set(xlabel="epoch", ylabel=title)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(frameon=False)
    alt = (
        f"Loss, AUROC, precision and recall over {len(history)} epochs; the weights of epoch {best.epoch:.0f} stay, with a "
        f"validation AUROC of {best.val_auroc:.3f}."
    )
    return Plot(figure, alt)
