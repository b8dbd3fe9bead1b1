"""Figures of the evaluation of one run and of several, one per function, from tables of `evaluation` and `comparing`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from pneumolib.evaluation.compare import CHANGED
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting.figures import (
    DIVERGING,
    NAMES,
    NEUTRAL,
    NORMAL,
    OTHERS,
    PNEUMONIA,
    Plot,
    curve_with_band,
    dots,
    kind_palette,
    legend_beside,
    new_axes,
    reach,
    reliability_curve,
    stacked_scores,
)
from pneumolib.reporting.results import figure_words

SPLITS = {"val": ("validation", NORMAL), "test": ("test", PNEUMONIA)}
# The curves of a sweep; colours apart from those of the classes.
_SWEPT = {"sensitivity": OTHERS[0], "specificity": OTHERS[1], "ppv": OTHERS[2], "accuracy": NEUTRAL}


def curves(bands: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame) -> Plot:
    """ROC and precision-recall curves of validation and test with their bands, and the frozen threshold as a dot.

    Args:
        bands: `evaluation.curve_bands`.
        validation, test: `evaluation.metric_table` of each, at the frozen threshold.
    """
    figure, (left, right) = new_axes(2, width=9, height=4.4)
    values = {"val": validation.set_index("metric").value, "test": test.set_index("metric").value}
    left.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.8, ls=":")
    for ax, curve, area, point in (
        (left, "roc", "auroc", {s: (1 - v["specificity"], v["sensitivity"]) for s, v in values.items()}),
        (right, "precision_recall", "auprc", {s: (v["sensitivity"], v["ppv"]) for s, v in values.items()}),
    ):
        panels = [ax, _corner(ax, 0.0 if curve == "roc" else 0.75)] if values["test"][area] > 0.9 else [ax]
        for split, (name, colour) in SPLITS.items():
            band = bands[(bands.curve == curve) & (bands.split == split)]
            for panel in panels:
                curve_with_band(panel, band, colour, f"{name}, {figure_words(values[split][area])}")
                panel.plot(*point[split], "o", color=colour, mec="white")
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.legend(title=f"area ({METRIC_NAMES[area]})", frameon=False, loc="lower center")
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    right.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", title="precision and recall")
    words = "; ".join(
        f"{SPLITS[s][0]} AUROC {figure_words(v['auroc'])}, AUPRC {figure_words(v['auprc'])}" for s, v in values.items()
    )
    return Plot(
        figure,
        f"ROC and precision-recall curves with bands of groups resampled: {words}; dots mark the frozen threshold.",
    )


def _corner(ax: Axes, start: float) -> Axes:
    """The corner where good curves crowd, a quarter of each axis drawn large in the panel's empty middle."""
    corner = ax.inset_axes([0.3, 0.36, 0.5, 0.5])
    corner.set(xlim=(start - 0.005, start + 0.255), ylim=(0.745, 1.005))
    corner.tick_params(labelsize=7)
    ax.indicate_inset_zoom(corner, edgecolor=NEUTRAL, alpha=0.5)
    return corner


def threshold_sweep(sweep: pd.DataFrame, threshold: float) -> Plot:
    """What every threshold would give on test, and the frozen one, from `evaluation.threshold_sweep`."""
    figure, (ax,) = new_axes(width=8, height=3.6)
    for name, colour in _SWEPT.items():
        ax.plot(sweep.threshold, sweep[name], color=colour, label=METRIC_NAMES[name])
    ax.axvline(threshold, color=PNEUMONIA, lw=1.2, label=f"frozen: {threshold:.3f}")
    ax.set(xlabel="threshold on the probability of pneumonia", ylabel="on test", xlim=(0, 1), ylim=(-0.02, 1.02))
    legend_beside(ax)
    row = sweep.iloc[(sweep.threshold - threshold).abs().argmin()]
    return Plot(figure, f"Sensitivity, specificity, PPV and accuracy on test by threshold; near the frozen one, {threshold:.3f}: sensitivity {figure_words(row.sensitivity)}, specificity {figure_words(row.specificity)}.")  # fmt: skip


def score_histograms(predictions: pd.DataFrame, threshold: float) -> Plot:
    """Predicted probabilities by kind, validation above test, and the frozen threshold."""
    figure, axes = new_axes(1, width=8, height=4.8, rows=2)
    palette = kind_palette(predictions.kind)
    for ax, (split, (name, _)) in zip(axes, SPLITS.items(), strict=True):
        rows = predictions[predictions.split == split]
        parts = {kind: rows.probability[rows.kind == kind] for kind in palette}
        stacked_scores(ax, parts, palette.values(), {"frozen threshold": threshold})
        most = np.histogram(rows.probability, np.linspace(0, 1, 41))[0].max()
        ax.set(ylabel=f"images, {name}", yscale="symlog")
        ax.set_yticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
        ax.set_ylim(0, 1.5 * most + 1)
    axes[1].set_xlabel("probability of pneumonia (counts on a logarithmic scale)")
    return Plot(
        figure,
        f"Histograms of the predicted probability by kind, validation and test; the frozen threshold is {threshold:.3f}.",
    )


def confusion_matrix(counts: dict[str, int]) -> Plot:
    """`tp, fp, tn, fn` as a heat map: counts, and the share of each true class."""
    figure, (ax,) = new_axes(width=4.6, height=3.2, style="white")
    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    words = [
        [f"{n}\n{share:.1%}" if sum(row[0]) else "0" for n, share in zip(*row, strict=True)]
        for row in zip(table, shares, strict=True)
    ]
    sns.heatmap(shares, annot=np.array(words), fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, ax=ax,
                xticklabels=list(NAMES.values()), yticklabels=list(NAMES.values()))  # fmt: skip
    ax.set(xlabel="called", ylabel="truly")
    alt = "Confusion matrix on test: {tp} true and {fp} false calls of pneumonia, {tn} true and {fn} false of normal."
    return Plot(figure, alt.format(**counts))


def calibration(raw: pd.DataFrame, calibrated: pd.DataFrame, method: str) -> Plot:
    """Reliability of the network's own and of the calibrated probabilities, each by `evaluation.reliability`, with counts."""
    figure, axes = new_axes(2, width=8, height=4.6, rows=2, height_ratios=(3, 1))
    alts = []
    for place, (bins, title) in enumerate(((raw, "as the network gives them"), (calibrated, f"calibrated: {method}"))):
        ax, below = axes[place], axes[2 + place]
        alts.append(reliability_curve(ax, bins, title, PNEUMONIA))
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        below.bar(bins.probability, bins.images, width=0.05, color=NORMAL)
        for row in bins.itertuples():
            below.annotate(str(row.images), (row.probability, row.images), ha="center", va="bottom", fontsize=7)
        below.set(xlim=(-0.02, 1.02), ylim=(0, bins.images.max() * 1.35), xlabel="probability of pneumonia")
    axes[0].set_ylabel("share with pneumonia")
    axes[2].set_ylabel("images")
    return Plot(
        figure, f"Reliability on test, share with pneumonia by mean probability. Raw: {alts[0]}. {method}: {alts[1]}."
    )


def decision_curve(curve: pd.DataFrame, calibrated: str) -> Plot:
    """Net benefit on test by threshold probability against treating all and none, from `evaluation.decision_curve`."""
    figure, (ax,) = new_axes(width=8, height=3.6)
    band = curve.rename(columns={"threshold": "x", "model": "y"})
    curve_with_band(ax, band, PNEUMONIA, f"the network ({calibrated})")
    ax.plot(curve.threshold, curve.treat_all, color=NORMAL, ls="--", label="treat all")
    ax.axhline(0, color=NEUTRAL, lw=1, label="treat none")
    ax.set(
        xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.1, curve.model.max() * 1.1 + 0.02)
    )
    legend_beside(ax)
    better = curve[curve.model > np.maximum(curve.treat_all, 0) + 1e-9].threshold
    said = "nowhere" if better.empty else f"from {better.min():.2f} to {better.max():.2f}"
    return Plot(figure, f"Net benefit by threshold probability; the network lies above treating all and none {said}.")


def robustness(table: pd.DataFrame) -> Plot:
    """Change of AUROC, sensitivity and specificity by kind and severity of a change of the images, as heat maps."""
    changed = table[table.corruption != "none"]
    if changed[[f"{name}_change" for name in CHANGED]].isna().all(axis=None):
        return Plot(
            new_axes(height=0.6, style="white")[0], "No image was changed, or nothing can be computed of changed ones."
        )
    names = list(dict.fromkeys(changed.corruption))
    figure, axes = new_axes(3, width=9.5, height=0.9 + 0.34 * max(len(names), 2), style="white")
    for ax, metric in zip(axes, CHANGED, strict=True):
        grid = changed.pivot_table(
            index="corruption", columns="severity", values=f"{metric}_change", dropna=False
        ).reindex(names)
        sns.heatmap(grid.astype(float), annot=grid.map(lambda v: "" if pd.isna(v) else f"{v:+.2f}"), fmt="", vmin=-0.5, vmax=0.5,
                    cmap=DIVERGING, cbar=False, ax=ax, annot_kws={"fontsize": 7})  # fmt: skip
        ax.set(title=METRIC_NAMES[metric], xlabel="severity", ylabel="")
        ax.tick_params(axis="y", rotation=0, left=False)
    for ax in axes[1:]:
        ax.set_yticks([])
    worst = changed.loc[changed.auroc_change.idxmin()] if changed.auroc_change.notna().any() else None
    said = (
        ""
        if worst is None
        else " The AUROC falls under none."
        if worst.auroc_change >= 0
        else f" The AUROC falls most under {worst.corruption}, severity {worst.severity}: {worst.auroc_change:+.3f}."
    )
    return Plot(
        figure, f"Change of AUROC, sensitivity and specificity at the frozen threshold when images are changed.{said}"
    )


# Runs apart by colour and, beyond so many, by line.
_LINES = [(colour, line) for line in ("-", "--", ":") for colour in (NORMAL, PNEUMONIA, *OTHERS)]
_COSTS = {"parameters": "weights", "minutes": "training, minutes", "milliseconds_per_image": "prediction, ms an image"}


def forest(board: pd.DataFrame, metrics: Sequence[str] = ("auroc", "sensitivity", "specificity")) -> Plot:
    """Test metrics with intervals, one row a run, from `results.leaderboard`."""
    figure, axes = new_axes(len(metrics), width=9, height=1.2 + 0.4 * max(len(board), 1))
    for ax, metric in zip(axes, metrics, strict=True):
        _forest_panel(ax, board, metric)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    words = "; ".join(f"{row.run} AUROC {figure_words(row.auroc)}" for row in board.itertuples())
    return Plot(figure, f"Test metrics with intervals by run: {words or 'no finished training run'}.")


def _forest_panel(ax: Axes, board: pd.DataFrame, metric: str) -> None:
    if board.empty:
        ax.text(0.5, 0.5, "no finished run", transform=ax.transAxes, ha="center", color=NEUTRAL)
        ax.set(xlabel=METRIC_NAMES[metric], yticks=[])
        return
    dots(ax, board, metric, board.run)
    least = board[[metric, f"{metric}_low"]].astype(float).min(axis=None)
    ax.set(xlim=(0.0 if pd.isna(least) else max(0.0, least - 0.05), 1.01), xlabel=f"{METRIC_NAMES[metric]} on test")


def roc_overlay(bands: dict[str, pd.DataFrame]) -> Plot:
    """ROC curves on test of several runs, from `evaluation.curve_bands` of each; the second panel is the upper left corner."""
    figure, (whole, corner) = new_axes(2, width=9, height=4.4)
    for ax in (whole, corner):
        ax.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.8, ls=":")
        for (run, band), (colour, line) in zip(bands.items(), _LINES * (1 + len(bands) // len(_LINES)), strict=False):
            test = band[(band.curve == "roc") & (band.split == "test")]
            ax.plot(test.x, test.y, color=colour, ls=line, label=run)
        ax.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    whole.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    corner.set(xlim=(-0.005, 0.3), ylim=(0.7, 1.005), title="the corner, enlarged")
    if bands:
        figure.legend(*whole.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return Plot(figure, f"ROC curves on test of {len(bands)} runs: {', '.join(bands) or 'none has finished'}.")


def cost_against_quality(board: pd.DataFrame) -> Plot:
    """Test AUROC with its interval against what a run costs, from `results.leaderboard`; costs on logarithmic scales."""
    figure, axes = new_axes(3, width=9.5, height=3.6)
    value, arms = board.auroc.astype(float), [arm.fillna(0) for arm in reach(board, "auroc")]
    for ax, (name, title) in zip(axes, _COSTS.items(), strict=True):
        costs = board[name].astype(float)
        for place, (colour, _) in zip(range(len(board)), _LINES * (1 + len(board) // len(_LINES)), strict=False):
            ends = [[arm.iloc[place]] for arm in arms]
            ax.errorbar([costs.iloc[place]], [value.iloc[place]], yerr=ends, fmt="o", color=colour, capsize=3,
                        label=board.run.iloc[place])  # fmt: skip
        ax.set(xlabel=title, ylabel="AUROC on test" if name == "parameters" else "")
        if costs.notna().any() and (costs.dropna() > 0).all():
            ax.set_xscale("log")
            ax.margins(x=0.2)
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            ax.xaxis.set_major_formatter(EngFormatter() if name == "parameters" else StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
    if len(board):
        figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    words = "; ".join(f"{r.run} {figure_words(r.auroc)} with {r.parameters:,} weights" for r in board.itertuples())
    return Plot(figure, f"Test AUROC against weights, training time and prediction time: {words or 'no finished run'}.")
