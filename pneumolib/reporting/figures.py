"""What all figures share, and the figures of networks and trainings.

Figures keep a white ground on light and dark pages alike, and in print. Colours are from the Okabe-Ito palette, which
most colour-blind readers can tell apart: blue is normal, vermilion is pneumonia, everywhere. All figures are `WIDTH` wide,
with at most two panels beside each other, so that their text can be read on a telephone.
"""

import base64
import io
import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from pneumolib.data.layout import LABEL_NAMES as NAMES
from pneumolib.reporting.session import numbered
from pneumolib.text import html_text, printable

NORMAL, PNEUMONIA, NEUTRAL = "#0072B2", "#D55E00", "#4d4d4d"
COLOURS = {0: NORMAL, 1: PNEUMONIA}
KIND_COLOURS = {"normal": NORMAL, "bacteria": PNEUMONIA, "virus": "#E69F00", "pneumonia": PNEUMONIA}
OTHERS = ["#009E73", "#CC79A7", "#56B4E9", "#F0E442"]  # the palette's remaining colours, for kinds and runs without one
DPI = 110
WIDTH = 5.2  # inches; at 390 pixels a text of 9 points is then 8 pixels high
SMALL = 8  # points, the smallest text
FROZEN, EMPTY = "#9fb8c9", "#e3e3e3"  # blocks of a network


@dataclass(frozen=True)
class Plot:
    """A figure with its caption; as the last line of a cell it shows itself, with a number, and writes its files.

    Attributes:
        name: of the files `figures/<name>.png` and `.svg` in the run's folder.
        caption: what the figure shows, in one or a few sentences.
        details: its figures, which follow the caption for those who cannot see it.
    """

    figure: Figure
    name: str
    caption: str
    details: str = ""

    def __post_init__(self):
        """Draw one legend for all panels below them, unless a panel has its own. Names from data can be of any length."""
        panels = self.figure.axes[::-1]  # the first one's handles count
        found = {label: handle for ax in panels for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        if found and not any(ax.get_legend() for ax in panels):
            labels = [wrapped(label, 54) for label in found]
            longest = max(len(line) for label in labels for line in label.split("\n"))
            columns = 3 if longest < 18 else 2 if longest < 32 else 1  # as many as fit beside each other
            if columns == 1:  # panels keep their height
                self.figure.set_figheight(self.figure.get_figheight() + 0.17 * "\n".join(labels).count("\n"))
            self.figure.legend(found.values(), labels, frameon=False, loc="outside lower center", ncols=columns)

    @property
    def alt(self) -> str:
        return f"{self.caption} {self.details}".strip()

    def _repr_mimebundle_(self, include=None, exclude=None):
        label, file = numbered("Figure", self.name)
        buffer = io.BytesIO()
        # Text from data is text: a dollar sign starts no formula. The same figure is the same file.
        with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": self.name}):
            for text in self.figure.findobj(Text):
                text.set_parse_math(False)
                text.set_text(printable(text.get_text(), "\n"))
            FigureCanvasAgg(self.figure).print_png(buffer)  # `savefig` would draw everything twice, once for the layout
            if file:
                file.with_suffix(".png").write_bytes(buffer.getvalue())
                self.figure.set_layout_engine("none")  # it is laid out already
                self.figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
        data = base64.b64encode(buffer.getvalue()).decode()
        source = f'alt="{html_text(self.alt)}" src="data:image/png;base64,{data}"'
        caption = f"<figcaption><strong>{label}.</strong> {html_text(self.caption)}</figcaption>"
        page = f'<figure><img style="max-width: 100%; height: auto" {source}>{caption}</figure>'
        return {"text/html": page, "text/plain": f"{label}. {self.alt}"}


def new_axes(count: int = 1, height: float = 3.2, columns: int = 1, style: str = "whitegrid", **options):
    """A figure that pyplot knows nothing of, so that none piles up in a long session, and the list of its axes.

    Args:
        count: of axes; places that are left over in the last row stay empty.
        height: of each row, in inches.
        options: of `Figure.subplots`.
    """
    rows = -(-count // columns)
    with sns.axes_style(style), sns.plotting_context("notebook", font_scale=0.8):
        figure = Figure(figsize=(WIDTH, rows * height), dpi=DPI, facecolor="white", layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` characters, broken at blanks and hyphens where possible; all can be seen."""
    return "\n".join(textwrap.fill(printable(line), width) for line in text.split("\n"))


def named(words: str) -> str:
    """A caption as a file's name: `Images with the centre masked` as `images-with-the-centre-masked`."""
    return re.sub("[^a-z]+", "-", words.lower()).strip("-")


def rounded_ticks(ax: Axes) -> None:
    """A logarithmic axis with few labels, also where it spans less than a power of ten."""
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]) if high / low < 50 else LogLocator())
    ax.xaxis.set_major_formatter(EngFormatter() if high > 1e5 else StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def reach(table: pd.DataFrame, name: str) -> list[pd.Series]:
    """How far an error bar reaches below and above column `name`, whose limits are `<name>_low` and `<name>_high`.

    A bootstrap's interval need not hold the value itself: the bar then has one arm.
    """
    value, low, high = (table[f"{name}{end}"].astype(float) for end in ("", "_low", "_high"))
    return [(value - low).clip(lower=0), (high - value).clip(lower=0)]


def dots(ax: Axes, table: pd.DataFrame, labels: Iterable[str], series: dict[str, tuple[str, str]]) -> None:
    """A forest plot: a row for each row of `table`, in it a dot with its interval for each column of `series`.

    Args:
        series: column to its name in the legend and its colour.
    """
    places = np.arange(len(table))
    for place, (column, (name, colour)) in enumerate(series.items()):
        shift = 0.28 * (place - (len(series) - 1) / 2)
        ax.errorbar(table[column].astype(float), places + shift, xerr=reach(table, column), fmt="o", color=colour,
                    capsize=3, label=name)  # fmt: skip
    names = [wrapped(label, 24) for label in labels]
    ax.set(yticks=places, yticklabels=names, ylim=(max(len(table), 1) - 0.5, -0.5), xmargin=0.1)


def band_below(ax: Axes, x: pd.Series, rows: pd.DataFrame, colour: str, alpha: float = 0.15) -> None:
    """The band from `low` to `high` of a curve."""
    ax.fill_between(x, rows.low.astype(float), rows.high.astype(float), color=colour, alpha=alpha, lw=0)


_AXES = {"roc": ("1 - specificity", "sensitivity"), "precision_recall": ("recall (sensitivity)", "precision (PPV)")}


def curve_panel(
    ax: Axes, curve: str, bands: dict[str, pd.DataFrame], styles: Iterable[tuple[str, str]], alpha: float = 0.15
) -> None:
    """ROC or precision-recall curves with their bands, from rows of `evaluation.curve_bands` by label.

    Args:
        curve: `roc` or `precision_recall`.
        styles: colour and line of each.
        alpha: of the bands.
    """
    x, y = _AXES[curve]
    if curve == "roc":
        ax.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.8, ls=":")
    for (label, band), (colour, line) in zip(bands.items(), styles, strict=False):
        rows = band[band.curve == curve]
        ax.plot(rows.x, rows.y, color=colour, ls=line, label=label)
        band_below(ax, rows.x, rows, colour, alpha)
    ax.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def kind_palette(kinds: pd.Series) -> dict[str, str]:
    """A colour for every kind there is, known ones always the same."""
    known = {kind: colour for kind, colour in KIND_COLOURS.items() if kind in set(kinds)}
    return known | dict(zip(sorted(set(kinds) - set(known)), itertools.cycle(OTHERS), strict=False))


def by_class(values: pd.Series, form: str) -> str:
    """`1.24 for normal and 1.49 for pneumonia` from values indexed by label."""
    return " and ".join(f"{value:{form}} for {NAMES[label]}" for label, value in values.items())


def sample_grid(pixels: np.ndarray, titles: Sequence[str], columns: int = 0, what: str = "Sample images") -> Plot:
    """Images as the network sees them; pixels uint8 (n, height, width, channels), a title each.

    By default six stand beside each other, or four where titles are long.
    """
    columns = columns or (6 if max(len(line) for title in titles for line in title.splitlines()) < 16 else 4)
    labels = [wrapped(title, 76 // columns) for title in titles]
    height = WIDTH / columns + 0.14 * max(label.count("\n") + 1 for label in labels)
    figure, axes = new_axes(len(pixels), height, columns, style="white")
    for ax, image, label in zip(axes, pixels, labels, strict=True):
        ax.set_axis_off()
        ax.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.set_title(label, fontsize=SMALL, pad=2)
    words = "; ".join(title.replace("\n", ", ") for title in titles)
    return Plot(figure, named(what), f"{what}.", f"{len(pixels)} radiographs in a grid: {words}.")


def network_diagram(blocks: pd.DataFrame) -> Plot:
    """A network from its input, on top, to its output: a bar a block, as wide as its feature map, by `network_blocks`."""
    figure, (ax,) = new_axes(height=0.52 * len(blocks) + 0.6, style="white")
    widths = np.maximum(np.sqrt(blocks.width / blocks.width.max()), 0.02)
    colours = np.select([blocks.parameters == 0, blocks.trainable > 0], [EMPTY, NORMAL], FROZEN)
    ax.barh(range(len(blocks)), widths, left=-widths / 2, height=0.7, color=colours, edgecolor="white")
    names = blocks.part + ": " + blocks.kinds
    sizes = [f"{b.output}, {b.parameters:,} weights, {b.trainable:,} of them trained" for b in blocks.itertuples()]
    for place, (name, size) in enumerate(zip(names, sizes, strict=True)):
        ax.text(0.62, place, f"{wrapped(name, 58)}\n{size}", va="center", fontsize=SMALL, linespacing=1.05)
    for colour, name in ((NORMAL, "trained"), (FROZEN, "frozen"), (EMPTY, "no weights")):
        ax.bar(0, 0, color=colour, label=name)
    ax.set(xlim=(-0.55, 3.6), ylim=(len(blocks) - 0.4, -0.6))
    ax.set_axis_off()
    words = "; ".join(f"{name}, {size}" for name, size in zip(names, sizes, strict=True))
    caption = "The network from input to output. Each bar is as wide as the feature map of its block."
    return Plot(figure, "network", caption, f"{len(blocks)} blocks: {words}.")


def learning_curves(history: pd.DataFrame) -> Plot:
    """Loss, AUROC, precision (PPV) and recall (sensitivity) by epoch, training and validation; the kept epoch is marked."""
    figure, axes = new_axes(4, 2.5, 2, sharex=True)
    best = history[history.kept].iloc[-1] if history.kept.any() else history.iloc[-1]
    panels = {"loss": "loss", "auroc": "AUROC", "ppv": "PPV at 0.5", "sensitivity": "sensitivity at 0.5"}
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
        ax.plot(history.epoch, history[name], color=NEUTRAL, ls="--", marker=".", ms=4, label="training")
        ax.plot(history.epoch, history[f"val_{name}"], color=NORMAL, marker=".", ms=4, label="validation")
        label = f"{'kept' if best.kept else 'last'}: epoch {best.epoch:.0f}"
        ax.axvline(best.epoch, color=PNEUMONIA, lw=1, label=label)
        ax.set_title(title)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        ax.set_xlabel("epoch" if ax in axes[2:] else "")
    caption = "Loss, AUROC, precision (PPV) and recall (sensitivity) by epoch, in training and validation."
    kept = f"The weights of epoch {best.epoch:.0f} stay, with a validation AUROC of {best.val_auroc:.3f}."
    return Plot(figure, "learning-curves", caption, kept)
