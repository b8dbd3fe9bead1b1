"""Figures of the images, of what the audit finds in them, and of histogram equalisation; one per function, no file access."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import equalize
from pneumolib.params import ImageParams
from pneumolib.reporting.figures import (
    COLOURS,
    DIVERGING,
    NAMES,
    NEUTRAL,
    NORMAL,
    OTHERS,
    Plot,
    by_class,
    dots,
    kind_palette,
    new_axes,
)

PARTS = {"train": "training", "val": "validation", "test": "test"}
# What of a file may tell the classes apart: column, axis label, logarithmic.
FEATURES = {
    "width_px": ("width (px)", True),
    "height_px": ("height (px)", True),
    "aspect": ("aspect ratio (width / height)", False),
    "bytes_per_px": ("bytes per pixel", True),
    "quantisation_sum": ("sum of the JPEG quantisation table", False),
    "mean_intensity": ("mean grey value", False),
    "sd_intensity": ("SD of grey values", False),
}


def class_counts(counts: pd.DataFrame) -> Plot:
    """Images of each kind in each source split, from `Manifest.counts`."""
    figure, (ax,) = new_axes(height=2.8)
    palette = kind_palette(counts.kind)
    sns.barplot(counts, x="images", y="source_split", hue="kind", palette=palette, ax=ax, hue_order=list(palette))
    for bars in ax.containers:
        ax.bar_label(bars, fontsize=8, padding=3)
    ax.set(xlabel="images", ylabel="folder")
    ax.legend(title=None, frameon=False)
    words = ", ".join(f"{row.source_split} {row.kind} {row.images}" for row in counts.itertuples())
    return Plot(figure, f"Bar chart of the images in each folder by kind: {words}.")


def image_sizes(table: pd.DataFrame) -> Plot:
    """Width against height, and the aspect ratio of each class: a shortcut a network can take."""
    figure, (left, right) = new_axes(2, height=3.6)
    for label, rows in table.groupby("label"):
        left.scatter(rows.width_px, rows.height_px, s=8, alpha=0.4, color=COLOURS[label], label=NAMES[label], lw=0)
        aspect = rows.width_px / rows.height_px
        right.hist(
            aspect, bins=np.linspace(0.6, 2.6, 41), density=True, alpha=0.6, color=COLOURS[label], label=NAMES[label]
        )
    left.set(xlabel="width (px)", ylabel="height (px)")
    right.set(xlabel="aspect ratio (width / height)", ylabel="density")
    left.legend(frameon=False, markerscale=2)
    medians = (table.width_px / table.height_px).groupby(table.label).median()
    return Plot(figure, f"Image sizes by class; the median aspect ratio is {by_class(medians, '.2f')}.")


def flow(manifest: Manifest, split: pd.DataFrame) -> Plot:
    """From the archive to the splits: images and groups in every box."""
    figure, (ax,) = new_axes(width=8.6, height=3.2, style="white")
    ax.set(xlim=(0, 10), ylim=(0, 3.2))
    ax.set_axis_off()
    table, n_bad = manifest.table, len(manifest.problems)
    pool = split[split.split != "test"]
    boxes = {
        (0.05, 1.2): f"Files found\n{len(table) + n_bad} files",
        (2.6, 1.2): f"Usable\n{_amount(table)}\n{n_bad} files left out",
        (5.15, 2.1): f"Training pool\n{_amount(pool)}",
        (5.15, 0.3): f"Test, as published\n{_amount(split[split.split == 'test'])}",
        (7.75, 2.3): f"Training\n{_amount(split[split.split == 'train'])}",
        (7.75, 1.2): f"Validation\n{_amount(split[split.split == 'val'])}",
    }
    for (x, y), words in boxes.items():
        ax.add_patch(FancyBboxPatch((x, y), 2.05, 0.85, boxstyle="round,pad=0.04", fc="#eef3f7", ec=NORMAL))
        ax.text(x + 1.02, y + 0.425, words, ha="center", va="center", fontsize=8.5)
    arrows = [((2.15, 1.62), (2.55, 1.62)), ((4.7, 1.75), (5.1, 2.4)), ((4.7, 1.5), (5.1, 0.85)),
              ((7.25, 2.6), (7.7, 2.75)), ((7.25, 2.35), (7.7, 1.75))]  # fmt: skip
    for start, end in arrows:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": NEUTRAL})
    words = "; ".join(text.replace("\n", ", ") for text in boxes.values())
    return Plot(figure, f"Flow of images from the archive to the splits: {words}.")


def _amount(rows: pd.DataFrame) -> str:
    return f"{len(rows)} images, {rows.group_id.nunique()} groups\n{rows.label.mean():.1%} pneumonia"


def _mean_image(pixels: np.ndarray, rows: np.ndarray, portion: int = 256) -> np.ndarray:
    """Mean of some images and their channels, float64 (height, width); summed in whole numbers, some images at a time."""
    starts = range(0, len(rows), portion)
    total = sum(pixels[rows[start : start + portion]].sum(axis=(0, 3), dtype=np.int64) for start in starts)
    return total / (len(rows) * pixels.shape[3])


def mean_images(pixels: np.ndarray, labels: np.ndarray) -> Plot:
    """The average image of each class and what sets them apart; pixels uint8 (n, height, width, channels)."""
    figure, axes = new_axes(3, width=9, height=3.2, style="white")
    means = [_mean_image(pixels, np.flatnonzero(labels == label)) for label in (0, 1)]
    for ax, mean, label in zip(axes, means, (0, 1), strict=False):
        ax.imshow(mean, cmap="gray", vmin=0, vmax=255)
        ax.set_title(f"mean {NAMES[label]}, n = {np.sum(labels == label)}")
    difference = means[1] - means[0]
    reach = max(float(np.abs(difference).max()), 1.0)
    shown = axes[2].imshow(difference, cmap=DIVERGING, vmin=-reach, vmax=reach)
    axes[2].set_title("pneumonia minus normal")
    figure.colorbar(shown, ax=axes[2], label="grey values", shrink=0.8)
    for ax in axes:
        ax.set_axis_off()
    centre = tuple(slice(side // 4, side - side // 4) for side in difference.shape)
    alt = (
        f"Mean image of each class and their difference, which runs from {difference.min():.0f} to "
        f"{difference.max():.0f} grey values; over the middle of the picture it averages {difference[centre].mean():+.0f}."
    )
    return Plot(figure, alt)


def intensities(histograms: pd.DataFrame) -> Plot:
    """Grey values of all pixels, a panel a split, a line a class; from `data.histograms_of`."""
    parts = list(dict.fromkeys(histograms.split))
    figure, axes = new_axes(len(parts), width=9, height=3)
    words = []
    for ax, part in zip(axes, parts, strict=True):
        shares = histograms[histograms.split == part].set_index("label").histogram
        for label, share in shares.items():
            ax.plot(share, color=COLOURS[label], label=NAMES[label])
        ax.set(title=PARTS[part], xlabel="grey value (0 black, 255 white)", yscale="log")
        words.append(f"{PARTS[part]} {by_class(shares.map(lambda share: share @ np.arange(256)), '.0f')}")
    axes[0].set_ylabel("share of pixels")
    axes[0].legend(frameon=False)
    return Plot(figure, f"Distributions of grey values by split and class; means of 255: {'; '.join(words)}.")


def file_features(table: pd.DataFrame, split: pd.DataFrame) -> Plot:
    """Every suspicious fact of a file by class and split: dot median, bar quartiles, line 5th to 95th percentile."""
    rows = table.merge(split[["image_id", "split"]], on="image_id", validate="1:1")
    rows = rows.assign(aspect=rows.width_px / rows.height_px, bytes_per_px=rows.bytes / rows.width_px / rows.height_px)
    figure, axes = new_axes(2, width=9, height=8.6, rows=4)
    for ax, (name, (title, logarithmic)) in zip(axes, FEATURES.items(), strict=False):
        _spread(ax, rows, name)
        if logarithmic and rows[name].min() > 0:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel=title, yticks=range(len(PARTS)), yticklabels=list(PARTS), ylim=(len(PARTS) - 0.5, -0.5))
    _colour_share(axes[len(FEATURES)], rows)
    medians = rows.groupby("label")[list(FEATURES)].median()
    words = "; ".join(f"{title}: {by_class(medians[name], '.3g')}" for name, (title, _) in FEATURES.items())
    return Plot(figure, f"Facts of the files by split and class. Medians: {words}.")


def _spread(ax: Axes, rows: pd.DataFrame, name: str) -> None:
    """Two lines a split, normal above pneumonia."""
    for place, part in enumerate(PARTS):
        for label, colour in COLOURS.items():
            values = rows[name][(rows.split == part) & (rows.label == label)]
            if values.empty:
                continue
            y, (low, first, middle, third, high) = (
                place - 0.17 + 0.34 * label,
                np.percentile(values, [5, 25, 50, 75, 95]),
            )
            ax.hlines(y, low, high, color=colour, lw=1.2)
            ax.hlines(y, first, third, color=colour, lw=7, alpha=0.6)
            ax.plot(middle, y, "o", color=colour, ms=5, mec="white", mew=0.8)


def _colour_share(ax: Axes, rows: pd.DataFrame) -> None:
    """How many files are stored in colour; the legend of the whole figure stands here."""
    colour = rows["mode"].str.contains("RGB|CMYK|YCbCr|YBR|PALETTE")
    share = rows.assign(colour=100 * colour).groupby(["split", "label"]).colour.mean().reset_index()
    share["class"] = share.label.map(NAMES)
    palette = {NAMES[label]: colour for label, colour in COLOURS.items()}
    sns.barplot(
        share, x="colour", y="split", hue="class", order=list(PARTS), hue_order=list(palette), palette=palette, ax=ax
    )
    ax.set(xlabel="files stored in colour (%)", ylabel="", xlim=(0, max(5, 1.05 * share.colour.max())))
    ax.legend(title=None, frameon=False, loc="lower right")


def extremes(table: pd.DataFrame, n: int = 6) -> pd.DataFrame:
    """The `n` largest, smallest, brightest and darkest images: rows of `table` with `what` and a `title`.

    Where all images are of one size, none is large or small.
    """
    measured = table.assign(area=table.width_px * table.height_px)
    picks = {}
    if measured.area.min() < measured.area.max():
        picks = {"largest": measured.nlargest(n, "area"), "smallest": measured.nsmallest(n, "area")}
    picks |= {
        "brightest": measured.nlargest(n, "mean_intensity"),
        "darkest": measured.nsmallest(n, "mean_intensity"),
    }
    rows = pd.concat([rows.assign(what=what) for what, rows in picks.items()], ignore_index=True)
    size = rows.width_px.astype(str) + " x " + rows.height_px.astype(str)
    seen = size.where(
        rows.what.isin(["largest", "smallest"]), "mean " + rows.mean_intensity.round().astype(int).astype(str)
    )
    stem = rows.path.str.split("/").str[-1].str.rsplit(".", n=1).str[0]
    return rows.assign(title=rows.what + ": " + seen + "\n" + stem)


def auroc_intervals(table: pd.DataFrame, label: str, columns: Sequence[str] = ("cv", "test")) -> Plot:
    """AUROC with intervals, a row of `table` each: `<column>, <column>_low, <column>_high` for each of `columns`."""
    figure, axes = new_axes(len(columns), width=9, height=1.3 + 0.36 * len(table))
    # The same ends on all panels; chance always shows.
    left = max(0.0, min(0.45, *(table[f"{column}{end}"].min() - 0.05 for column in columns for end in ("", "_low"))))
    titles = {"cv": "cross-validated on the training pool", "validation": "validation", "test": "test"}
    for ax, column in zip(axes, columns, strict=True):
        dots(ax, table, column, table[label])
        ax.axvline(0.5, color=NEUTRAL, lw=0.8, ls=":")
        ax.set(title=titles[column], xlabel="AUROC (0.5 is chance)", xlim=(left, 1.02))
    for ax in axes[1:]:
        ax.set_yticklabels([])
    words = "; ".join(
        f"{row[label]} "
        + ", ".join(f"{c} " + ("not computable" if pd.isna(row[c]) else f"{row[c]:.2f}") for c in columns)
        for _, row in table.iterrows()
    )
    return Plot(figure, f"AUROC with intervals: {words}.")


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
