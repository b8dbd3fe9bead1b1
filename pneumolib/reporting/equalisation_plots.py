"""Figures of histogram equalisation: what it does to images, to their histograms and to a network's AUROC."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pneumolib.data.pixels import equalize
from pneumolib.params import ImageParams
from pneumolib.reporting.figures import COLOURS, NAMES, NEUTRAL, OTHERS, Plot, new_axes

WAYS = {"none": "as it is", "hist": "HE", "clahe": "CLAHE"}
WAY_COLOURS = {"none": NEUTRAL, "hist": OTHERS[1], "clahe": OTHERS[0]}  # neither class's colour


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
    """Several images (uint8, n x height x width x channels): a row as they are, one after HE, one after CLAHE, and one of
    all three histograms (steps) with their cumulative curves.
    """
    columns = len(pixels)
    figure, axes = new_axes(columns, width=9, height=5.6, rows=len(WAYS) + 1, style="white")
    for row, (way, name) in enumerate(WAYS.items()):
        changed = params.model_copy(update={"equalize": way})
        for column, image in enumerate(pixels):
            ax, equalised = axes[row * columns + column], equalize(image, changed)
            ax.imshow(equalised.squeeze(), cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.set_title(titles[column] if row == 0 else "", fontsize=7)
            ax.set_ylabel(name if column == 0 else "")
            _curves(axes[len(WAYS) * columns + column], equalised, name, WAY_COLOURS[way])
    axes[len(WAYS) * columns].legend(frameon=False, fontsize=6, loc="upper left")
    axes[len(WAYS) * columns].set_ylabel("cumulative")
    return Plot(
        figure,
        f"{columns} images in three rows, as they are, after HE and after CLAHE, with their histograms and cumulative "
        f"curves below: {'; '.join(titles)}.",
    )


def _curves(ax: Axes, pixels: np.ndarray, name: str, colour: str) -> None:
    """A histogram of 32 steps, scaled to half the height, and the cumulative curve."""
    counts = np.bincount(pixels.reshape(-1), minlength=256) / pixels.size
    steps = counts.reshape(32, 8).sum(axis=1)
    ax.stairs(steps / (2 * steps.max()), np.arange(0, 257, 8), color=colour, lw=0.7, alpha=0.7)
    ax.plot(np.cumsum(counts), color=colour, lw=1.2, label=name)
    ax.set(xticks=[0, 255], yticks=[], ylim=(0, 1.02), xlim=(0, 255))
    ax.tick_params(labelsize=6)


def clahe_settings(image: np.ndarray, params: ImageParams, clip_limits: Sequence[float], tiles: Sequence[int]) -> Plot:
    """One image under each pair of clip limit (rows) and number of tiles along a side (columns).

    Each title says how many pixels of a tile may have one grey value: a share that is less than one counts as one.
    """
    height = 2.1 * len(clip_limits)
    figure, axes = new_axes(
        len(tiles), width=1 + 1.9 * len(tiles), height=height + 0.4, rows=len(clip_limits), style="white"
    )
    for ax, (clip, n) in zip(axes, [(clip, n) for clip in clip_limits for n in tiles], strict=True):
        changed = params.model_copy(update={"equalize": "clahe", "clahe_clip_limit": clip, "clahe_tiles": n})
        ax.imshow(equalize(image, changed).squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        tile_px = (params.size_px // n) ** 2
        ax.set_title(f"{n} x {n} tiles: {max(1, int(clip * tile_px))} of {tile_px} px", fontsize=7)
        ax.set_ylabel(f"clip limit {clip:g}" if n == tiles[0] else "", fontsize=8)
    return Plot(
        figure,
        f"One image after CLAHE with clip limits {', '.join(f'{c:g}' for c in clip_limits)} (rows) and "
        f"{', '.join(map(str, tiles))} tiles along a side (columns).",
    )


def validation_curves(histories: dict[str, pd.DataFrame]) -> Plot:
    """Validation AUROC by epoch of each training, its best epoch marked."""
    figure, (ax,) = new_axes(width=6, height=3)
    words = []
    for way, history in histories.items():
        best = history.loc[history.val_auroc.idxmax()]
        ax.plot(history.epoch, history.val_auroc, color=WAY_COLOURS[way], label=WAYS[way])
        ax.plot(best.epoch, best.val_auroc, "o", color=WAY_COLOURS[way])
        words.append(f"{WAYS[way]} {best.val_auroc:.3f} in epoch {best.epoch:.0f} of {len(history)}")
    ax.set(xlabel="epoch", ylabel="validation AUROC")
    ax.legend(frameon=False, title="dots: kept epoch")
    return Plot(figure, f"Validation AUROC by epoch; best: {'; '.join(words)}.")


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
    means = histograms.assign(mean=histograms.histogram.map(lambda share: share @ np.arange(256)))
    words = "; ".join(
        f"{WAYS[row.equalize]}, {row.split}, {NAMES[row.label]} {row.mean:.0f}" for row in means.itertuples(index=False)
    )
    return Plot(figure, f"Pooled grey values by class, in training and in test. Means of 255: {words}.")
