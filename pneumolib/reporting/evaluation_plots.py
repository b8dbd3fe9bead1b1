"""Figures of the evaluation of one run, of several, and of a frozen model on another source, from tables of `evaluation`."""

import itertools
from collections.abc import Sized

import numpy as np
import pandas as pd
import seaborn as sns

from pneumolib.data.pixels import ImageSet
from pneumolib.evaluation.compare import CHANGED
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting import figures
from pneumolib.reporting.figures import Plot
from pneumolib.reporting.prose import CALIBRATION_NAMES, FACT_NAMES
from pneumolib.reporting.results import figure_words

SPLITS = {"val": ("validation", figures.NORMAL), "test": ("test", figures.PNEUMONIA)}
# The two sources; colours apart from those of the classes.
HERE, THERE = figures.OTHERS[1], figures.OTHERS[0]
SOURCES = {"test": ("own test", THERE), "external": ("other source", HERE)}


def curves(bands: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame) -> Plot:
    """ROC and precision-recall curves of validation and test with their bands, and the frozen threshold as a dot.

    Args:
        bands: `evaluation.curve_bands`.
        validation, test: `evaluation.metric_table` of each, at the frozen threshold.
    """
    figure, axes = figures.new_axes(2, 2.9, 2)
    values = [table.set_index("metric").value for table in (validation, test)]
    parts = [bands[bands.split == split] for split in SPLITS]
    words, styles = [], [(colour, "-") for _, colour in SPLITS.values()]
    for ax, curve, area in ((axes[0], "roc", "auroc"), (axes[1], "precision_recall", "auprc")):
        labels = [f"{name} {figure_words(at[area])}" for (name, _), at in zip(SPLITS.values(), values, strict=True)]
        figures.curve_panel(ax, curve, dict(zip(labels, parts, strict=True)), styles)
        for (_, colour), at in zip(SPLITS.values(), values, strict=True):
            x, y = (1 - at["specificity"], "sensitivity") if curve == "roc" else (at["sensitivity"], "ppv")
            ax.plot(x, at[y], "o", color=colour, mec="white")
        small = {"fontsize": figures.SMALL, "title_fontsize": figures.SMALL}
        ax.legend(title=METRIC_NAMES[area], frameon=False, loc="lower center", **small)
        words.append(f"{METRIC_NAMES[area]} {', '.join(labels)}")
    caption = "ROC and precision-recall curves with intervals. Dots mark the frozen threshold."
    return Plot(figure, "roc", caption, f"{'; '.join(words)}.")


def threshold_sweep(sweep: pd.DataFrame, threshold: float) -> Plot:
    """What every threshold would give on test, and the frozen one, from `evaluation.threshold_sweep`."""
    figure, (ax,) = figures.new_axes(height=3.8)
    swept = ("sensitivity", "specificity", "ppv", "accuracy")  # in colours apart from those of the classes
    for name, colour in zip(swept, (*figures.OTHERS[:3], figures.NEUTRAL), strict=True):
        ax.plot(sweep.threshold, sweep[name], color=colour, label=METRIC_NAMES[name])
    ax.axvline(threshold, color=figures.PNEUMONIA, lw=1.2, label=f"frozen: {threshold:.3f}")
    ax.set(xlabel="threshold on the probability of pneumonia", ylabel="on test", xlim=(0, 1), ylim=(-0.02, 1.02))
    caption = f"Sensitivity, specificity, PPV and accuracy on test by threshold. Frozen: {threshold:.3f}."
    return Plot(figure, "threshold-sweep", caption)


def score_histograms(predictions: pd.DataFrame, threshold: float, recalibrated: float | None = None) -> Plot:
    """Predicted probabilities of two splits; of each class the share of its own images, so that classes compare.

    Args:
        predictions: by kind, of validation and test; or by class, of splits `test` and `external`.
        threshold: frozen.
        recalibrated: threshold of the other source alone, where there is one.
    """
    splits, kinds = SPLITS, predictions.kind
    if recalibrated is not None:
        splits, kinds = SOURCES, predictions.label.map(figures.NAMES)
    figure, axes = figures.new_axes(2, 2.45, sharex=True)
    edges, medians, lines = np.linspace(0, 1, 21), [], {"frozen threshold": threshold, "recalibrated": recalibrated}
    for ax, (split, (title, _)) in zip(axes, splits.items(), strict=True):
        for name, colour in figures.kind_palette(kinds).items():
            scores = predictions.probability[(predictions.split == split) & (kinds == name)]
            shares = np.histogram(scores, edges)[0] / max(len(scores), 1)
            ax.stairs(shares, edges, fill=True, fc=(colour, 0.25), ec=colour, lw=1.6, label=name)
            medians += [f"{title}, {name} {scores.median():.2f} ({len(scores)} images)"] if len(scores) else []
        for (name, value), style in zip(lines.items(), ("--", ":"), strict=True):
            if value is not None:
                ax.axvline(value, color=figures.NEUTRAL, lw=1.4, ls=style, label=f"{name}: {value:.3f}")
        ax.set(title=title, xlim=(0, 1), ylim=(0, None), ylabel="share of the class")
    axes[-1].set_xlabel("probability of pneumonia")
    caption = "Predicted probabilities by class. Each class is shown as shares of its own images."
    return Plot(figure, "scores", caption, f"Medians: {'; '.join(medians)}. Threshold: {threshold:.3f}.")


def confusion_matrix(counts: dict[str, int]) -> Plot:
    """`tp, fp, tn, fn` as a heat map: counts, and the share of each true class."""
    figure, (ax,) = figures.new_axes(height=2.8, style="white")
    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    words = np.char.add(table.astype(str), [[f"\n{share:.1%}" if share else "" for share in row] for row in shares])
    sns.heatmap(shares, annot=words, fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, ax=ax,
                xticklabels=list(figures.NAMES.values()), yticklabels=list(figures.NAMES.values()), annot_kws={"fontsize": 10})  # fmt: skip
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.tick_params(labelsize=9)
    details = "Pneumonia: {tp} true and {fp} false positives. Normal: {tn} true and {fn} false negatives."
    caption = "Confusion matrix on test at the frozen threshold: images, and shares of the true class."
    return Plot(figure, "confusion-matrix", caption, details.format(**counts))


def reliability(tables: dict[str, pd.DataFrame], where: str = "test", smooth: pd.DataFrame | None = None) -> Plot:
    """Share with pneumonia by mean probability, a panel for each kind of probabilities.

    Args:
        tables: title, or name of an external calibration, to `evaluation.reliability`.
        where: the images, for the caption.
        smooth: of `evaluation.calibration_curve`, drawn behind the bins.
    """
    figure, axes = figures.new_axes(len(tables), 2.9, min(len(tables), 2))
    details = []
    for ax, (name, bins) in zip(axes, tables.items(), strict=True):
        title = CALIBRATION_NAMES.get(name, name)
        ax.bar(bins.probability, 0.25 * bins.images / bins.images.max(), width=0.06, color="#c8d6df", zorder=1)
        ax.plot([0, 1], [0, 1], color=figures.NEUTRAL, lw=0.8, ls=":")
        arms = np.clip([bins.observed - bins.low, bins.high - bins.observed], 0, None)
        line = "o-" if smooth is None else "o"
        ax.errorbar(bins.probability, bins.observed, arms, fmt=line, color=figures.PNEUMONIA, lw=1, capsize=3, ms=5)
        if smooth is not None:
            ax.plot(smooth.probability, smooth.observed, color=figures.NORMAL)
            figures.band_below(ax, smooth.probability, smooth, figures.NORMAL)
        ax.set(title=title, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="probability of pneumonia")
        words = "; ".join(f"{b.probability:.2f}: {b.observed:.2f} of {b.images}" for b in bins.itertuples())
        details.append(f"{title}: {words}")
    figure.supylabel("share with pneumonia", fontsize="medium")
    caption = f"Reliability of the probabilities on {where}: bins with intervals; bars show how many images each holds."
    caption += "" if smooth is None else " The line is a smoothed calibration curve with its band."
    words = f"Share with pneumonia by mean probability. {'. '.join(details)}."
    return Plot(figure, "reliability", caption, words)


def decision_curve(curve: pd.DataFrame, better: list[tuple[float, float]], calibrated: str) -> Plot:
    """Net benefit on test by threshold probability against treating all and none, from `evaluation.decision_curve`.

    `better` is of `evaluation.better_ranges`.
    """
    figure, (ax,) = figures.new_axes(height=3.6)
    ax.plot(curve.threshold, curve.model, color=figures.PNEUMONIA, label=f"network ({calibrated})")
    figures.band_below(ax, curve.threshold, curve, figures.PNEUMONIA)
    ax.plot(curve.threshold, curve.treat_all, color=figures.NORMAL, ls="--", label="treat all")
    ax.axhline(0, color=figures.NEUTRAL, lw=1, label="treat none")
    top = curve.model.max() * 1.1 + 0.02
    ax.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.1, top))
    said = ", ".join(f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}" for low, high in better)
    caption = "Decision curve on test: net benefit by threshold probability, with its interval. The interval of the difference "
    caption += f"from the better of treating all and none lies above 0 at {said or 'no threshold'}."
    return Plot(figure, "decision-curve", caption)


def risk_coverage(table: pd.DataFrame) -> Plot:
    """Share of errors by the share of images that are not referred, from `evaluation.risk_coverage`."""
    figure, (ax,) = figures.new_axes(height=2.8)
    swept, frozen = table[~table.frozen], table[table.frozen]
    ax.plot(swept.coverage, swept.error, color=figures.PNEUMONIA)
    band = swept.rename(columns={"error_low": "low", "error_high": "high"})
    figures.band_below(ax, swept.coverage, band, figures.PNEUMONIA)
    ax.plot(frozen.coverage, frozen.error, "o", color=figures.NORMAL)
    ax.set(xlabel="share of images that are not referred", ylabel="share of errors", xlim=(1.01, 0.49), ylim=(0, None))
    caption = "Errors on test among the images that are not referred, the least certain ones being referred first, with intervals."
    caption += " The dot is the frozen band." if len(frozen) else ""
    return Plot(figure, "risk-coverage", caption)


def robustness(table: pd.DataFrame) -> Plot:
    """Change of AUROC, sensitivity and specificity by kind and severity of a change of the images, as heat maps."""
    changed = table[table.corruption != "none"]
    names = changed.corruption.unique()
    figure, axes = figures.new_axes(3, 0.8 + 0.23 * max(len(names), 2), style="white", sharex=True)
    for ax, metric in zip(axes, CHANGED, strict=True):
        grid = changed.pivot_table(f"{metric}_change", "corruption", "severity", dropna=False).reindex(names)
        if len(grid):  # `robustness.images` may be 0
            sns.heatmap(grid.astype(float), annot=True, fmt="+.2f", vmin=-0.5, vmax=0.5, cmap="RdBu", cbar=False, ax=ax,
                        annot_kws={"fontsize": figures.SMALL})  # fmt: skip
        ax.set(title=METRIC_NAMES[metric], xlabel="severity" if ax is axes[-1] else "", ylabel="")
        ax.tick_params(axis="y", rotation=0, left=False)
    caption = "Change of AUROC, sensitivity and specificity at the frozen threshold when images are changed. Red is a loss, blue a gain."
    return Plot(figure, "robustness", caption)


_COLOURS = (figures.NORMAL, figures.PNEUMONIA, *figures.OTHERS)
_MOST_DRAWN = 20  # runs in one figure: those best on validation
_COSTS = {"parameters": "weights", "minutes": "training, minutes", "milliseconds_per_image": "prediction, ms an image"}


def forest(board: pd.DataFrame) -> Plot:
    """AUROC, sensitivity and specificity on test with intervals, one row a run, from `comparing.leaderboard`."""
    caption, board = f"Test metrics with intervals by run, as in the table{_drawn(board)}.", board.head(_MOST_DRAWN)
    figure, axes = figures.new_axes(len(CHANGED), 0.6 + 0.34 * len(board))
    for ax, metric in zip(axes, CHANGED, strict=True):
        figures.dots(ax, board, board.run, {metric: ("", figures.NORMAL)})
        ax.set(xlabel=METRIC_NAMES[metric], xlim=(None, 1.01))
    return Plot(figure, "forest", caption)


def _drawn(runs: Sized) -> str:
    """What a caption adds where not all runs are drawn."""
    return f": the {_MOST_DRAWN} of {len(runs)} that are best on validation" if len(runs) > _MOST_DRAWN else ""


def roc_overlay(bands: dict[str, pd.DataFrame]) -> Plot:
    """ROC curves on test of several runs, from `evaluation.curve_bands` of each, the best on validation first."""
    caption, bands = f"ROC curves on test by run{_drawn(bands)}.", dict(itertools.islice(bands.items(), _MOST_DRAWN))
    figure, (ax,) = figures.new_axes(height=4.4 + 0.2 * -(-len(bands) // 2))
    tests = {run: band[band.split == "test"] for run, band in bands.items()}
    # Runs apart by colour and, beyond so many, by line.
    styles = itertools.cycle((colour, line) for line in ("-", "--", ":") for colour in _COLOURS)
    figures.curve_panel(ax, "roc", tests, styles, alpha=0)
    return Plot(figure, "roc-by-run", caption, f"{len(bands)} runs: {', '.join(bands)}.")


def cost_against_quality(board: pd.DataFrame) -> Plot:
    """Test AUROC with its interval against what a run costs, from `results.leaderboard`; costs on logarithmic scales."""
    caption = f"Test AUROC with its interval against weights, training time and prediction time{_drawn(board)}."
    board = board.head(_MOST_DRAWN)
    figure, axes = figures.new_axes(3, 2.2 + 0.07 * -(-len(board) // 2))
    for ax, (name, title) in zip(axes, _COSTS.items(), strict=True):
        for colour, (run, one) in zip(itertools.cycle(_COLOURS), board.groupby("run", sort=False), strict=False):
            cost, arms = one[name].astype(float), figures.reach(one, "auroc")
            ax.errorbar(cost, one.auroc, yerr=arms, fmt="o", color=colour, capsize=3, label=run)
        ax.set(xlabel=title, ylabel="AUROC on test", xscale="log", xmargin=0.2)
        figures.rounded_ticks(ax)
    return Plot(figure, "cost", caption)


def sweep(tables: dict[str, pd.DataFrame]) -> Plot | None:
    """Validation AUROC against each swept parameter, from `comparing.sweeps`: means, with bars from the lowest to the highest run.

    A second swept parameter is told by colour. Seeds get no panel beside another parameter. None without a sweep.
    """
    keys = {file: [k for k in table.columns[2:] if k != "seed"] or ["seed"] for file, table in tables.items()}
    panels = [(file, key, [k for k in keys[file] if k != key][:1]) for file in tables for key in keys[file]]
    if not panels:
        return None
    figure, axes = figures.new_axes(len(panels), 2.6)
    for ax, (file, key, others) in zip(axes, panels, strict=True):
        table = tables[file].apply(lambda c: c if c.dtype.kind in "if" and c.notna().all() else c.map(str))
        table, numeric = table.astype(dict.fromkeys(others, str)).sort_values(key), table[key].dtype.kind in "if"
        colours = {"hue": others[0], "palette": "colorblind"} if others else {"color": figures.NORMAL}
        look = {"marker": "o", "err_style": "bars", "errorbar": ("pi", 100), "linestyle": "-" if numeric else ""}
        sns.lineplot(table, x=key, y="validation_auroc", ax=ax, **look, **colours)
        ax.set(title=file, xlabel=key, ylabel="AUROC on validation", xmargin=0.1)
        ticks = table[key].unique() if numeric else []
        if 0 < len(ticks) < 9:
            ax.set_xscale("log" if 0 < 10 * ticks[0] <= ticks[-1] else "linear")
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.set_xticks([], minor=True)
    caption = "AUROC on validation by swept parameter: means over the runs, with bars from the lowest to the highest."
    best = "; ".join(f"{file}: {table.run[table.validation_auroc.idxmax()]}" for file, table in tables.items())
    return Plot(figure, "sweep", caption, f"Best on validation: {best}.")


def side_by_side(own: ImageSet, others: ImageSet) -> Plot:
    """Some images of the study's own, above, and of the other source, as the network sees them; titles name site and class."""
    pixels, titles = [], []
    for images in (own, others):
        rows = images.table.sort_values(["site", "label"], kind="stable")
        pixels += [images.pixels[place] for place in rows.index]
        titles += [f"{row.site or 'other source'}\n{figures.NAMES[row.label]}" for row in rows.itertuples()]
    what = "Images of the study, above, and of the other source"
    return figures.sample_grid(np.stack(pixels), titles, columns=len(own), what=what)


def drift(table: pd.DataFrame) -> Plot:
    """Median and middle 95% of each fact in training and in the other source, from `evaluation.drift_table`."""
    sides = {"training": ("training", THERE), "here": ("here", HERE)}
    columns = {"training_median": "training", "median": "here", "low": "here_low", "high": "here_high"}
    table = table.rename(columns=columns)
    figure, axes = figures.new_axes(len(table), 1.15, 2)
    for ax, (name, row) in zip(axes, table.groupby("fact", sort=False), strict=True):
        figures.dots(ax, row, [""], sides)
        ax.set_title(FACT_NAMES[name], fontsize=9)
        ax.locator_params(axis="x", nbins=4)
    caption = "Median (dot) and middle 95% (bar) of each fact, in training and in the other source, as in the table."
    return Plot(figure, "drift", caption)


def frozen(bands: pd.DataFrame, differences: pd.DataFrame) -> Plot:
    """ROC curves of both sources with bands and the frozen threshold as a dot; below them three metrics with intervals.

    Args:
        bands: `evaluation.curve_bands` of splits `test` and `external`.
        differences: `evaluation.unpaired_differences` of `external` and `internal`.
    """
    figure, (above, below) = figures.new_axes(2, 3.2, height_ratios=(2, 1))
    rows = differences.set_index("metric")
    parts = {name: bands[bands.split == split] for split, (name, _) in SOURCES.items()}
    figures.curve_panel(above, "roc", parts, [(colour, "-") for _, colour in SOURCES.values()])
    series = {"internal": SOURCES["test"], "external": SOURCES["external"]}
    for side, (_, colour) in series.items():
        at = rows[side]
        above.plot(1 - at["specificity"], at["sensitivity"], "o", color=colour, mec="white", ms=9)
    figures.dots(below, rows, rows.index.map(METRIC_NAMES), series)
    below.set(xlabel="at the frozen threshold", xlim=(None, 1.01))
    caption = "ROC curves and metrics of both sources with intervals. Dots mark the frozen threshold."
    return Plot(figure, "roc", caption)
