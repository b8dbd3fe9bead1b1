"""Figures of networks and trainings, one per function, no file access."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from pneumolib.reporting.figures import NEUTRAL, NORMAL, PNEUMONIA, Plot, new_axes

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
