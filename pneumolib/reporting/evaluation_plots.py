"""Figures of the evaluation of one run and of several, one per function, from tables of `evaluation` and `comparing`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns

from pneumolib.evaluation.compare import CHANGED
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting import figures
from pneumolib.reporting.results import figure_words

SPLITS = {"val": ("validation", figures.NORMAL), "test": ("test", figures.PNEUMONIA)}
# The curves of a sweep; colours apart from those of the classes.
_SWEPT = dict(
    zip(("sensitivity", "specificity", "ppv", "accuracy"), (*figures.OTHERS[:3], figures.NEUTRAL), strict=True)
)


def curves(bands: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame) -> figures.Plot:
    """ROC and precision-recall curves of validation and test with their bands, and the frozen threshold as a dot.

    Args:
        bands: `evaluation.curve_bands`.
        validation, test: `evaluation.metric_table` of each, at the frozen threshold.
    """
    figure, axes = figures.new_axes(2, height=2.9)
    values = [table.set_index("metric").value for table in (validation, test)]
    parts = [bands[bands.split == split] for split in SPLITS]
    words, styles = [], [(colour, "-") for _, colour in SPLITS.values()]
    for ax, curve, area, start in ((axes[0], "roc", "auroc", 0.0), (axes[1], "precision_recall", "auprc", 0.75)):
        labels = [f"{name} {figure_words(at[area])}" for (name, _), at in zip(SPLITS.values(), values, strict=True)]
        # Good curves crowd in a corner: it is drawn large in the panel's empty middle.
        corner = [ax.inset_axes([0.28, 0.34, 0.56, 0.56])] if values[1][area] > 0.9 else []
        for panel in (ax, *corner):
            figures.curve_panel(panel, curve, dict(zip(labels, parts, strict=True)), styles)
            for (_, colour), at in zip(SPLITS.values(), values, strict=True):
                x, y = (1 - at["specificity"], "sensitivity") if curve == "roc" else (at["sensitivity"], "ppv")
                panel.plot(x, at[y], "o", color=colour, mec="white")
        for panel in corner:
            panel.set(xlim=(start - 0.005, start + 0.255), ylim=(0.745, 1.005), xlabel="", ylabel="",
                      xticks=[start, start + 0.25], yticks=[0.75, 1])  # fmt: skip
            panel.tick_params(labelsize=figures.SMALL)
            ax.indicate_inset_zoom(panel, edgecolor=figures.NEUTRAL, alpha=0.5)
        small = {"fontsize": figures.SMALL, "title_fontsize": figures.SMALL}
        ax.legend(title=METRIC_NAMES[area], frameon=False, loc="lower center", **small)
        words.append(f"{METRIC_NAMES[area]} {', '.join(labels)}")
    caption = "ROC and precision-recall curves with intervals. Dots mark the frozen threshold."
    return figures.Plot(figure, "roc", caption, f"{'; '.join(words)}.")


def threshold_sweep(sweep: pd.DataFrame, threshold: float) -> figures.Plot:
    """What every threshold would give on test, and the frozen one, from `evaluation.threshold_sweep`."""
    figure, (ax,) = figures.new_axes(height=3.8)
    for name, colour in _SWEPT.items():
        ax.plot(sweep.threshold, sweep[name], color=colour, label=METRIC_NAMES[name])
    ax.axvline(threshold, color=figures.PNEUMONIA, lw=1.2, label=f"frozen: {threshold:.3f}")
    ax.set(xlabel="threshold on the probability of pneumonia", ylabel="on test", xlim=(0, 1), ylim=(-0.02, 1.02))
    figures.legend_below(figure, ax)
    row = sweep.iloc[(sweep.threshold - threshold).abs().argmin()]
    at = ", ".join(f"{METRIC_NAMES[name].lower()} {figure_words(row[name])}" for name in ("sensitivity", "specificity"))
    details = f"Near the frozen threshold, {threshold:.3f}: {at}."
    return figures.Plot(
        figure, "threshold-sweep", "Sensitivity, specificity, PPV and accuracy on test by threshold.", details
    )


def score_histograms(predictions: pd.DataFrame, threshold: float) -> figures.Plot:
    """Predicted probabilities by kind, validation above test, and the frozen threshold."""
    panels = {name: (predictions[predictions.split == split], {"frozen threshold": threshold})
              for split, (name, _) in SPLITS.items()}  # fmt: skip
    return figures.score_plot(panels, "kind", figures.kind_palette(predictions.kind))


def confusion_matrix(counts: dict[str, int]) -> figures.Plot:
    """`tp, fp, tn, fn` as a heat map: counts, and the share of each true class."""
    figure, (ax,) = figures.new_axes(width=4, height=2.8, style="white")
    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    words = np.char.add(table.astype(str), [[f"\n{share:.1%}" if share else "" for share in row] for row in shares])
    sns.heatmap(shares, annot=words, fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, ax=ax,
                xticklabels=list(figures.NAMES.values()), yticklabels=list(figures.NAMES.values()), annot_kws={"fontsize": 10})  # fmt: skip
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.tick_params(labelsize=9)
    details = "Pneumonia: {tp} true and {fp} false positives. Normal: {tn} true and {fn} false negatives."
    caption = "Confusion matrix on test at the frozen threshold: images, and shares of the true class."
    return figures.Plot(figure, "confusion-matrix", caption, details.format(**counts))


def calibration(raw: pd.DataFrame, calibrated: pd.DataFrame, method: str) -> figures.Plot:
    """Reliability of the network's own and of the calibrated probabilities, each by `evaluation.reliability`."""
    return figures.reliability_plot({"network's own": raw, f"calibrated: {method}": calibrated}, "test")


def decision_curve(curve: pd.DataFrame, calibrated: str) -> figures.Plot:
    """Net benefit on test by threshold probability against treating all and none, from `evaluation.decision_curve`."""
    figure, (ax,) = figures.new_axes(height=3.6)
    ax.plot(curve.threshold, curve.model, color=figures.PNEUMONIA, label=f"network ({calibrated})")
    figures.band_below(ax, curve.threshold, curve, figures.PNEUMONIA)
    ax.plot(curve.threshold, curve.treat_all, color=figures.NORMAL, ls="--", label="treat all")
    ax.axhline(0, color=figures.NEUTRAL, lw=1, label="treat none")
    ax.set(
        xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.1, curve.model.max() * 1.1 + 0.02)
    )
    figures.legend_below(figure, ax)
    better = curve[curve.model > np.maximum(curve.treat_all, 0) + 1e-9].threshold
    said = "nowhere" if better.empty else f"from {better.min():.2f} to {better.max():.2f}"
    caption = "Decision curve on test: net benefit by threshold probability, with its interval."
    return figures.Plot(figure, "decision-curve", caption, f"The network is above treating all and none {said}.")


def robustness(table: pd.DataFrame) -> figures.Plot:
    """Change of AUROC, sensitivity and specificity by kind and severity of a change of the images, as heat maps."""
    changed = table[table.corruption != "none"]
    if changed[[f"{name}_change" for name in CHANGED]].isna().all(axis=None):
        caption = "No image was changed, or nothing can be computed of changed ones."
        return figures.Plot(figures.new_axes(height=0.6, style="white")[0], "robustness", caption)
    names = list(dict.fromkeys(changed.corruption))
    figure, axes = figures.new_axes(height=3 * (0.8 + 0.23 * max(len(names), 2)), rows=3, style="white", sharex=True)
    for ax, metric in zip(axes, CHANGED, strict=True):
        grid = changed.pivot_table(index="corruption", columns="severity", values=f"{metric}_change", dropna=False)
        grid = grid.reindex(names).astype(float)
        sns.heatmap(grid, annot=grid.map(lambda v: "" if pd.isna(v) else f"{v:+.2f}"), fmt="", vmin=-0.5, vmax=0.5,
                    cmap="RdBu", cbar=False, ax=ax, annot_kws={"fontsize": figures.SMALL})  # fmt: skip
        ax.set(title=METRIC_NAMES[metric], xlabel="severity" if ax is axes[-1] else "", ylabel="")
        ax.tick_params(axis="y", rotation=0, left=False)
    worst, said = changed.dropna(subset="auroc_change").sort_values("auroc_change").head(1), ""
    for row in worst.itertuples():
        said = f" most under {row.corruption}, severity {row.severity}: {row.auroc_change:+.3f}."
        said = f"The AUROC falls{said if row.auroc_change < 0 else ' under none.'}"
    caption = "Change of AUROC, sensitivity and specificity at the frozen threshold when images are changed. Red is a loss, blue a gain."
    return figures.Plot(figure, "robustness", caption, said)


# Runs apart by colour and, beyond so many, by line.
_LINES = [
    (colour, line) for line in ("-", "--", ":") for colour in (figures.NORMAL, figures.PNEUMONIA, *figures.OTHERS)
]
_COSTS = {"parameters": "weights", "minutes": "training, minutes", "milliseconds_per_image": "prediction, ms an image"}


def forest(board: pd.DataFrame, metrics: Sequence[str] = ("auroc", "sensitivity", "specificity")) -> figures.Plot:
    """Test metrics with intervals, one row a run, from `results.leaderboard`."""
    rows = 1 if board.empty else len(metrics)
    figure, axes = figures.new_axes(height=rows * (0.6 + 0.34 * max(len(board), 1)), rows=rows)
    if board.empty:
        axes[0].set_axis_off()
    for ax, metric in zip(axes, () if board.empty else metrics, strict=False):
        figures.dots(ax, board, board.run, {metric: ("test", figures.NORMAL)})
        least = board[[metric, f"{metric}_low"]].astype(float).min(axis=None)
        ax.set(xlim=(0.0 if pd.isna(least) else max(0.0, least - 0.05), 1.01), xlabel=METRIC_NAMES[metric])
    words = "; ".join(f"{row.run} AUROC {figure_words(row.auroc)}" for row in board.itertuples())
    return figures.Plot(
        figure, "forest", "Test metrics with intervals by run.", words or "There is no finished training run."
    )


def roc_overlay(bands: dict[str, pd.DataFrame]) -> figures.Plot:
    """ROC curves on test of several runs, from `evaluation.curve_bands` of each."""
    figure, (ax,) = figures.new_axes(height=4.4 + 0.2 * -(-len(bands) // 2))
    tests = {run: band[band.split == "test"] for run, band in bands.items()}
    figures.curve_panel(ax, "roc", tests, _LINES * (1 + len(bands) // len(_LINES)), alpha=0)
    if bands:
        figures.legend_below(figure, ax, 2)
    details = f"{len(bands)} runs: {', '.join(bands) or 'none has finished'}."
    return figures.Plot(figure, "roc-by-run", "ROC curves on test by run.", details)


def cost_against_quality(board: pd.DataFrame) -> figures.Plot:
    """Test AUROC with its interval against what a run costs, from `results.leaderboard`; costs on logarithmic scales."""
    figure, axes = figures.new_axes(height=6.6 + 0.2 * -(-len(board) // 2), rows=3)
    styles = _LINES * (1 + len(board) // len(_LINES))
    for ax, (name, title) in zip(axes, _COSTS.items(), strict=True):
        for (colour, _), (_, one) in zip(styles, board.groupby("run", sort=False), strict=False):
            arms = [arm.fillna(0) for arm in figures.reach(one, "auroc")]
            ax.errorbar(one[name].astype(float), one.auroc.astype(float), yerr=arms, fmt="o", color=colour, capsize=3,
                        label=one.run.iloc[0])  # fmt: skip
        ax.set(xlabel=title, ylabel="AUROC on test")
        if (board[name].dropna().astype(float) > 0).all() and board[name].notna().any():
            ax.set_xscale("log")
            ax.margins(x=0.2)
            figures.rounded_ticks(ax)
    if len(board):
        figures.legend_below(figure, axes[0], 2)
    words = "; ".join(f"{r.run} {figure_words(r.auroc)} with {r.parameters:,} weights" for r in board.itertuples())
    caption = "Test AUROC with its interval against weights, training time and prediction time."
    return figures.Plot(figure, "cost", caption, f"{words or 'There is no finished run'}.")
