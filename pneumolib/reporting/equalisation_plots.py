"""Figures of histogram equalisation: what it does to images, to their histograms and to a network's AUROC."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pneumolib.data.images import equalize
from pneumolib.params import ImageParams
from pneumolib.reporting.figures import COLOURS, NAMES, NEUTRAL, Plot, new_axes

WAYS = {"none": "as it is", "hist": "HE", "clahe": "CLAHE"}


def before_and_after(image: np.ndarray, params: ImageParams, title: str) -> Plot:
    """One image (uint8, height x width x channels) as it is, after HE and after CLAHE, with histogram and cumulative
    curve below each."""
    figure, axes = new_axes(3, width=9, height=5, rows=2, style="white")
    spreads = []
    for column, (way, name) in enumerate(WAYS.items()):
        pixels = equalize(image, params.model_copy(update={"equalize": way}))
        axes[column].imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes[column].set_title(f"{title}, {name}")
        axes[column].set_axis_off()
        _histogram(axes[3 + column], pixels)
        spreads.append(f"{name} {np.subtract(*np.percentile(pixels, [95, 5])):.0f}")
    axes[3].set_ylabel("share of pixels")
    return Plot(
        figure,
        f"{title}: the image as it is, after HE and after CLAHE, with histograms and cumulative curves. From the 5th to "
        f"the 95th percentile the grey values span: {', '.join(spreads)} of 255.",
    )


def _histogram(ax: Axes, pixels: np.ndarray) -> None:
    counts = np.bincount(pixels.reshape(-1), minlength=256) / pixels.size
    ax.bar(np.arange(0, 256, 4), counts.reshape(-1, 4).sum(axis=1), width=4, align="edge", color="#56B4E9")
    ax.set(xlabel="grey value", xlim=(0, 256))
    right = ax.twinx()
    right.plot(np.cumsum(counts), color=NEUTRAL, lw=1.2)
    right.set(ylim=(0, 1.02), yticks=[0, 0.5, 1])
    right.tick_params(labelsize=7)


def side_by_side(pixels: np.ndarray, titles: Sequence[str], params: ImageParams) -> Plot:
    """Several images (uint8, n x height x width x channels): a row as they are, one after HE, one after CLAHE."""
    figure, axes = new_axes(len(pixels), width=9, height=4.2, rows=len(WAYS), style="white")
    for row, (way, name) in enumerate(WAYS.items()):
        changed = params.model_copy(update={"equalize": way})
        for column, image in enumerate(pixels):
            ax = axes[row * len(pixels) + column]
            ax.imshow(equalize(image, changed).squeeze(), cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.set_title(titles[column] if row == 0 else "", fontsize=7)
            ax.set_ylabel(name if column == 0 else "")
    return Plot(figure, f"{len(pixels)} images in three rows: as they are, after HE, after CLAHE.")


def clahe_settings(image: np.ndarray, params: ImageParams, clip_limits: Sequence[float], tiles: Sequence[int]) -> Plot:
    """One image under each pair of clip limit (rows) and number of tiles along a side (columns)."""
    size = 1.9 * len(clip_limits)
    figure, axes = new_axes(
        len(tiles), width=1 + 1.9 * len(tiles), height=size + 0.4, rows=len(clip_limits), style="white"
    )
    for ax, (clip, n) in zip(axes, [(clip, n) for clip in clip_limits for n in tiles], strict=True):
        changed = params.model_copy(update={"equalize": "clahe", "clahe_clip_limit": clip, "clahe_tiles": n})
        ax.imshow(equalize(image, changed).squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{n} x {n} tiles" if clip == clip_limits[0] else "", fontsize=8)
        ax.set_ylabel(f"clip limit {clip:g}" if n == tiles[0] else "", fontsize=8)
    return Plot(
        figure,
        f"One image after CLAHE with clip limits {', '.join(f'{c:g}' for c in clip_limits)} (rows) and "
        f"{', '.join(map(str, tiles))} tiles along a side (columns).",
    )


def grey_values(histograms: pd.DataFrame) -> Plot:
    """Pooled grey values by class, training against test, a panel a way; from `histograms_of` in `data.contrast`."""
    figure, axes = new_axes(len(WAYS), width=9, height=3)
    for ax, (way, name) in zip(axes, WAYS.items(), strict=True):
        for row in histograms[histograms["equalize"] == way].itertuples():
            style = {"train": "-", "test": "--"}[row.split]
            # Smoothed over eight grey values: HE leaves gaps, which say nothing and hide the rest.
            smooth = np.convolve(row.histogram, np.ones(8) / 8, mode="same")
            ax.plot(smooth, color=COLOURS[row.label], ls=style, lw=1.1, label=f"{NAMES[row.label]}, {row.split}")
        ax.set(title=name, xlabel="grey value", ylim=(0, None))
    axes[0].set_ylabel("share of pixels")
    axes[0].legend(frameon=False, fontsize=7)
    return Plot(figure, "Pooled grey values by class, in training and in test: as they are, after HE and after CLAHE.")
