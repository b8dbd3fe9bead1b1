"""Figures of the images, of what the audit finds in them, and of histogram equalisation; one per function, no file access."""

import itertools
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from pneumolib.data.facts import FACTS, metadata_features
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import equalize
from pneumolib.params import ImageParams
from pneumolib.reporting import figures
from pneumolib.reporting.figures import Plot
from pneumolib.reporting.prose import PARTS, WAYS

_LINES = {"train": "-", "val": ":", "test": "--"}
_GREY = {"cmap": "gray", "vmin": 0, "vmax": 255}


def class_counts(counts: pd.DataFrame) -> Plot:
    """Images of each kind in each source split, from `Manifest.counts`."""
    figure, (ax,) = figures.new_axes(height=2.8)
    palette = figures.kind_palette(counts.kind)
    sns.barplot(counts, x="images", y="source_split", hue="kind", palette=palette, ax=ax, hue_order=list(palette))
    for bars in ax.containers:
        ax.bar_label(bars, fontsize=figures.SMALL, padding=3)
    ax.set(xlabel="images", ylabel="folder")
    ax.margins(x=0.1)
    ax.get_legend().remove()
    return Plot(figure, "class-counts", "Images of each kind by folder.")


def image_sizes(table: pd.DataFrame) -> Plot:
    """Width against height, and the aspect ratio of each class: a shortcut a network can take."""
    figure, (left, right) = figures.new_axes(2, columns=2)
    ratio = table.width_px / table.height_px
    for label, colour in figures.COLOURS.items():
        rows, shown = table[table.label == label], {"color": colour, "label": figures.NAMES[label]}
        left.scatter(rows.width_px, rows.height_px, s=8, alpha=0.4, color=colour, lw=0)
        right.hist(ratio[rows.index], bins=np.linspace(0.6, 2.6, 41), density=True, alpha=0.6, **shown)
    left.set(xlabel="width (px)", ylabel="height (px)")
    right.set(xlabel=FACTS["aspect"].title, ylabel="density")
    details = f"The median aspect ratio is {figures.by_class(ratio.groupby(table.label).median(), '.2f')}."
    return Plot(figure, "image-sizes", "Sizes and aspect ratios of images by class.", details)


def flow(manifest: Manifest, split: pd.DataFrame) -> Plot:
    """From the archive to the splits: images and groups in every box."""
    table, bad, pool = manifest.table, int(manifest.problems.files.sum()), split[split.split != "test"]
    boxes = {  # words, place, and the box above
        "files": (f"Files found\n{len(table) + bad} files", (0.5, 0.94), None),
        "usable": (f"Usable\n{_amount(table)}\n{bad} files left out", (0.5, 0.67), "files"),
        "pool": (f"Training pool\n{_amount(pool)}", (0.33, 0.36), "usable"),
        "test": (f"Test, as published\n{_amount(split[split.split == 'test'])}", (0.83, 0.36), "usable"),
        "train": (f"Training\n{_amount(split[split.split == 'train'])}", (0.16, 0.07), "pool"),
        "val": (f"Validation\n{_amount(split[split.split == 'val'])}", (0.5, 0.07), "pool"),
    }
    figure, (ax,) = figures.new_axes(height=4.6, style="white")
    ax.set_axis_off()
    box = {"boxstyle": "round,pad=0.5", "fc": "#eef3f7", "ec": figures.NORMAL}
    style = {"textcoords": "axes fraction", "ha": "center", "va": "center", "fontsize": 9, "bbox": box}
    arrow = {"arrowstyle": "<|-", "color": figures.NEUTRAL, "shrinkA": 0, "shrinkB": 6}
    drawn = {}
    for name, (words, place, above) in boxes.items():
        ends = {"xycoords": drawn[above], "arrowprops": arrow} if above else {}
        drawn[name] = ax.annotate(words, (0.5, 0), place, **style, **ends)
    details = "; ".join(words.replace("\n", ", ") for words, *_ in boxes.values())
    return Plot(figure, "flow", "Flow of images from the source to training, validation and test.", details)


def _amount(rows: pd.DataFrame) -> str:
    return f"{len(rows)} images, {rows.group_id.nunique()} groups\n{rows.label.mean():.1%} pneumonia"


def mean_images(pixels: np.ndarray, labels: np.ndarray) -> Plot:
    """The average image of each class and what sets them apart; pixels uint8 (n, height, width, channels)."""
    figure, axes = figures.new_axes(3, 2.7, 3, style="white")
    means = [pixels.mean(axis=(0, 3), where=(labels == label)[:, None, None, None]) for label in (0, 1)]
    for label, mean in enumerate(means):
        axes[label].imshow(mean, **_GREY)
        axes[label].set_title(f"{figures.NAMES[label]}\n{np.sum(labels == label)} images", fontsize=9)
    difference = means[1] - means[0]
    most = max(float(np.abs(difference).max()), 1.0)
    shown = axes[2].imshow(difference, cmap="RdBu_r", vmin=-most, vmax=most)
    axes[2].set_title("pneumonia\nminus normal", fontsize=9)
    figure.colorbar(shown, ax=axes, label="difference in grey values", location="bottom", shrink=0.5)
    for ax in axes:
        ax.set_axis_off()
    caption = "Mean image of each class, and the difference of the two. Red is brighter in pneumonia."
    details = f"The difference is from {difference.min():+.0f} to {difference.max():+.0f} grey values."
    return Plot(figure, "mean-images", caption, details)


def grey_values(histograms: pd.DataFrame) -> Plot:
    """Grey values of all pixels by class: training solid, validation dotted, test dashed.

    Args:
        histograms: from `data.histograms_of`; with a column `equalize` a panel a way.
    """
    ways = histograms.get("equalize", "as the network receives them")
    panels = histograms.assign(equalize=ways).groupby("equalize", sort=False)
    figure, axes = figures.new_axes(len(panels), 1.6 + 1.4 / len(panels), sharex=True)
    words = []
    for ax, (way, rows) in zip(axes, panels, strict=True):
        for row in rows.itertuples():
            # Smoothed over eight grey values: HE leaves gaps, which say nothing and hide the rest.
            smooth = np.convolve(row.histogram, np.ones(8) / 8, mode="same")
            label = f"{figures.NAMES[row.label]}, {PARTS[row.split]}"
            ax.plot(smooth, color=figures.COLOURS[row.label], ls=_LINES[row.split], lw=1.2, label=label)
            words.append(f"{WAYS.get(way, way)}, {label} {row.histogram @ np.arange(256):.0f}")
        ax.set(title=WAYS.get(way, way), ylabel="share of pixels", ylim=(0, None))
    axes[-1].set_xlabel("grey value (0 black, 255 white)")
    return Plot(figure, "grey-values", "Grey values of all pixels by class.", f"Means of 255: {'; '.join(words)}.")


def file_features(table: pd.DataFrame, split: pd.DataFrame) -> Plot:
    """Every fact of `data.metadata_features` by class and split: dot median, bar quartiles, line 5th to 95th percentile.

    Of formats and modes a bar shows the share of files.
    """
    features = metadata_features(table)
    logarithms = [name for name in features if name.startswith("log2_")]
    features[logarithms] = 2 ** features[logarithms]
    titles = {name: FACTS[fact].title if (fact := name.removeprefix("log2_")) in FACTS else fact for name in features}
    rows = features.join(split.set_index("image_id")[["split", "label"]])
    shares = [name for name in titles if rows[name].isin([0, 1]).all()]
    figure, axes = figures.new_axes(len(titles), 1.6, 2)
    shape = {"data": rows, "y": "split", "order": list(PARTS), "hue": rows.label.map(figures.NAMES),
             "palette": {figures.NAMES[label]: colour for label, colour in figures.COLOURS.items()}}  # fmt: skip
    dots = {"estimator": "median", "dodge": 0.34, "ls": "none", "markersize": 8, "mec": "white"}
    bar = {"errorbar": ("pi", 50), "err_kws": {"lw": 6, "alpha": 0.6}}
    line = {"errorbar": ("pi", 90), "err_kws": {"lw": 1.2}}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        if name in shares:
            sns.barplot(**shape, x=name, errorbar=None, saturation=1, legend=False, ax=ax)
        else:
            sns.pointplot(**shape, x=name, **dots, **bar, legend=False, ax=ax)
            sns.pointplot(**shape, x=name, **dots, **line, legend=ax is axes[0], ax=ax)
        ax.set(xlabel=title, ylabel="")
        if name in logarithms:
            ax.set_xscale("log")
            figures.rounded_ticks(ax)
    axes[0].get_legend().remove()
    middle = rows.groupby("label").agg({name: "mean" if name in shares else "median" for name in titles})
    words = "; ".join(f"{title}: {figures.by_class(middle[name], '.3g')}" for name, title in titles.items())
    caption = "Facts of the files by split and class. Dot: median; bar: quartiles; line: 5th to 95th percentile."
    caption += " Of formats and modes: the share of files."
    return Plot(figure, "file-facts", caption, f"Medians, or shares of files: {words}.")


def extremes(table: pd.DataFrame, n: int = 6) -> pd.DataFrame:
    """The `n` largest, smallest, brightest and darkest images: rows of `table` with `what` and a `title`.

    Where all images are of one size, none is large or small.
    """
    table = table.assign(area=table.width_px * table.height_px)
    ends = {"brightest": table.nlargest(n, "mean_intensity"), "darkest": table.nsmallest(n, "mean_intensity")}
    if table.area.min() < table.area.max():
        ends = {"largest": table.nlargest(n, "area"), "smallest": table.nsmallest(n, "area")} | ends
    found = pd.concat(ends, names=["what"]).reset_index("what").reset_index(drop=True)
    rows = zip(found.what, found.width_px, found.height_px, found.mean_intensity, found.path, strict=True)
    titles = [f"{what}: {w} x {h}\nmean {grey:.0f}\n{PurePath(path).stem}" for what, w, h, grey, path in rows]
    return found.assign(title=titles)


_SCORED = {"cv": "cross-validated on the training pool", "validation": "validation", "test": "test"}


def auroc_intervals(table: pd.DataFrame, label: str, columns: Sequence[str] = ("cv", "test")) -> Plot:
    """AUROC with intervals, a row of `table` each: `<column>, <column>_low, <column>_high` for each of `columns`."""
    figure, (ax,) = figures.new_axes(height=1.2 + 0.5 * len(table))
    series = {column: (_SCORED[column], colour) for column, colour in zip(columns, figures.OTHERS, strict=False)}
    ax.axvline(0.5, color=figures.NEUTRAL, lw=0.8, ls=":")
    figures.dots(ax, table, table[label], series)
    ax.set(xlabel="AUROC (0.5 is chance)", xlim=(None, 1.02))
    return Plot(figure, f"auroc-by-{label}", f"AUROC with intervals, by {label}, as in the table.")


WAY_COLOURS = {"none": figures.NEUTRAL, "hist": figures.OTHERS[1], "clahe": figures.OTHERS[0]}  # neither class's colour


def side_by_side(pixels: np.ndarray, titles: Sequence[str], params: ImageParams, what: str = "Training images") -> Plot:
    """Images (uint8, n x height x width x channels), a row each: as they are, after HE, after CLAHE, and all three
    histograms (steps) with their cumulative curves.
    """
    columns = len(WAYS) + 1
    figure, axes = figures.new_axes(columns * len(pixels), 1.35 + 0.9 / len(pixels), columns, style="white")
    spans = []
    for place, image in enumerate(pixels):
        *row, last = axes[place * columns :][:columns]
        for ax, (way, name) in zip(row, WAYS.items(), strict=True):
            equalised = equalize(image, params.model_copy(update={"equalize": way}))
            ax.imshow(equalised.squeeze(), **_GREY)
            ax.set(xticks=[], yticks=[], title=name if place == 0 else "")
            shares = np.bincount(equalised.reshape(-1), minlength=256) / equalised.size
            steps = shares.reshape(32, 8).sum(axis=1)
            last.stairs(steps / (2 * steps.max()), np.arange(0, 257, 8), color=WAY_COLOURS[way], lw=0.7, alpha=0.8)
            last.plot(np.cumsum(shares), color=WAY_COLOURS[way], lw=1.2, label=name)
            spans.append(f"{titles[place]} {name} {np.subtract(*np.percentile(equalised, [95, 5])):.0f}".strip())
        row[0].set_ylabel(figures.wrapped(titles[place], 16), fontsize=figures.SMALL)
        last.set(xticks=[0, 255], yticks=[], ylim=(0, 1.02), xlim=(0, 255), box_aspect=1)
    caption = f"{what}: original, after HE and after CLAHE; on the right histograms (steps) and cumulative curves of all three."
    details = f"From the 5th to the 95th percentile the grey values span, of 255: {'; '.join(spans)}."
    return Plot(figure, figures.named(what), caption, details)


def clahe_settings(image: np.ndarray, params: ImageParams, clip_limits: Sequence[float], tiles: Sequence[int]) -> Plot:
    """One image under each pair of clip limit (rows) and number of tiles along a side (columns).

    Each title says how many pixels of a tile may have one grey value: a share that is less than one counts as one.
    """
    shown, titles, tile_px = [], [], {n: (params.size_px // n) ** 2 for n in tiles}
    for clip, n in itertools.product(clip_limits, tiles):
        changed = params.model_copy(update={"equalize": "clahe", "clahe_clip_limit": clip, "clahe_tiles": n})
        shown.append(equalize(image, changed))
        titles.append(f"clip limit {clip:g}\n{n} x {n} tiles:\n{max(1, int(clip * tile_px[n]))} of {tile_px[n]} px")
    return figures.sample_grid(shown, titles, len(tiles), "CLAHE of one image by clip limit (rows) and tiles (columns)")


def validation_curves(histories: dict[str, pd.DataFrame]) -> Plot:
    """Validation AUROC by epoch of each training, its best epoch marked."""
    figure, (ax,) = figures.new_axes()
    words = []
    for way, history in histories.items():
        best = history.loc[history.val_auroc.idxmax()]
        ax.plot(history.epoch, history.val_auroc, color=WAY_COLOURS[way], label=WAYS[way])
        ax.plot(best.epoch, best.val_auroc, "o", color=WAY_COLOURS[way])
        words.append(f"{WAYS[way]} {best.val_auroc:.3f} in epoch {best.epoch:.0f} of {len(history)}")
    ax.set(xlabel="epoch", ylabel="validation AUROC")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    details = f"Best: {'; '.join(words)}."
    return Plot(figure, "validation-curves", "Validation AUROC by epoch. Dots mark the kept epochs.", details)
