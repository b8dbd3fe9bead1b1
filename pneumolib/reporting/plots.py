"""Figures of models and results, one per function, no file access; `data_plots` has those of the images."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.reporting.figures import COLOURS, NAMES, NEUTRAL, NORMAL, PNEUMONIA, Plot, new_axes

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
    figure, (ax,) = new_axes(width=8, height=0.5 * len(blocks) + 0.8, style="white")
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
    ax.set(xlim=(-1.9, 1.5), ylim=(len(blocks) - 0.4, -0.6))
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
    """Loss and AUROC by epoch, training and validation; the kept epoch is marked."""
    figure, (left, right) = new_axes(2)
    best = history[history.kept].iloc[-1] if history.kept.any() else history.iloc[-1]
    for ax, name, title in ((left, "loss", "loss"), (right, "auroc", "AUROC")):
        ax.plot(history.epoch, history[name], color=NEUTRAL, ls="--", label="training")
        ax.plot(history.epoch, history[f"val_{name}"], color=NORMAL, label="validation")
        ax.axvline(
            best.epoch, color=PNEUMONIA, lw=1, label=f"{'kept: ' if best.kept else 'last: '}epoch {best.epoch:.0f}"
        )
        ax.set(xlabel="epoch", ylabel=title)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False)
    alt = f"Loss and AUROC over {len(history)} epochs; the weights of epoch {best.epoch:.0f} stay, with a validation AUROC of {best.val_auroc:.3f}."
    return Plot(figure, alt)


def roc(predictions: pd.DataFrame, threshold: float) -> Plot:
    """ROC curve of each split, with the point of the frozen threshold."""
    figure, (ax,) = new_axes(width=4.6, height=4.2)
    ax.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.8, ls=":")
    for split, colour, name in (("val", NORMAL, "validation"), ("test", PNEUMONIA, "test")):
        rows = predictions[predictions.split == split]
        false_rate, true_rate, _ = roc_curve(rows.label, rows.probability)
        ax.plot(false_rate, true_rate, color=colour, label=name)
        called = rows.probability >= threshold
        ax.plot(called[rows.label == 0].mean(), called[rows.label == 1].mean(), "o", color=colour)
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    ax.legend(title="dots: frozen threshold", frameon=False, loc="lower right")
    return Plot(figure, "ROC curves on validation and test, with the points of the frozen threshold.")


def score_histograms(predictions: pd.DataFrame, threshold: float) -> Plot:
    """Predicted probabilities by class, validation beside test, and the frozen threshold."""
    figure, axes = new_axes(2)
    for ax, (split, name) in zip(axes, (("val", "validation"), ("test", "test")), strict=True):
        rows = predictions[predictions.split == split]
        for label in (0, 1):
            ax.hist(rows.probability[rows.label == label], bins=np.linspace(0, 1, 26), alpha=0.6, color=COLOURS[label],
                    label=NAMES[label])  # fmt: skip
        ax.axvline(threshold, color=NEUTRAL, lw=1, label="frozen threshold")
        ax.set(xlabel="probability of pneumonia", ylabel="images", title=name)
    axes[0].legend(frameon=False)
    return Plot(figure, f"Histograms of the predicted probability by class; the frozen threshold is {threshold:.3f}.")


def confusion_matrix(counts: dict[str, int]) -> Plot:
    """`tp, fp, tn, fn` as a heat map: counts, and the share of each true class."""
    figure, (ax,) = new_axes(width=4.6, height=3.2, style="white")
    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    words = [[f"{n}\n{share:.0%}" for n, share in zip(*row, strict=True)] for row in zip(table, shares, strict=True)]
    sns.heatmap(shares, annot=np.array(words), fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, ax=ax,
                xticklabels=list(NAMES.values()), yticklabels=list(NAMES.values()))  # fmt: skip
    ax.set(xlabel="called", ylabel="truly")
    alt = "Confusion matrix on test: {tp} true and {fp} false calls of pneumonia, {tn} true and {fn} false of normal."
    return Plot(figure, alt.format(**counts))


def forest(board: pd.DataFrame, metrics: Sequence[str] = ("auroc", "sensitivity", "specificity")) -> Plot:
    """Test metrics with intervals, one row a run, from `results.leaderboard`."""
    figure, axes = new_axes(len(metrics), width=9, height=1.2 + 0.4 * max(len(board), 1))
    for ax, metric in zip(axes, metrics, strict=True):
        _forest_panel(ax, board, metric)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    words = "; ".join(f"{row.run} AUROC {row.auroc:.3f}" for row in board.itertuples())
    return Plot(figure, f"Test metrics with intervals by run: {words or 'no finished training run'}.")


def _forest_panel(ax: Axes, board: pd.DataFrame, metric: str) -> None:
    if board.empty:
        ax.text(0.5, 0.5, "no finished run", transform=ax.transAxes, ha="center", color=NEUTRAL)
        ax.set(xlabel=METRIC_NAMES[metric], yticks=[])
        return
    places = np.arange(len(board))
    value, low, high = (board[f"{metric}{end}"].astype(float) for end in ("", "_low", "_high"))
    # A bootstrap's interval need not hold the value itself.
    reach = [(value - low).clip(lower=0), (high - value).clip(lower=0)]
    ax.errorbar(value, places, xerr=reach, fmt="o", color=NORMAL, capsize=3)
    left = max(0.0, np.nanmin([*low, *value]) - 0.05)
    ax.set(yticks=places, yticklabels=board.run, xlim=(left, 1.01), ylim=(len(board) - 0.5, -0.5))
    ax.set_xlabel(f"{METRIC_NAMES[metric]} on test")
