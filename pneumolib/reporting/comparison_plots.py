"""Figures of several runs beside each other, one per function, no file access."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting.figures import NEUTRAL, NORMAL, OTHERS, PNEUMONIA, Plot, dots, new_axes, reach
from pneumolib.reporting.results import figure_words

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
