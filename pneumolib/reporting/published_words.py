"""Published figures beside ours: tables and sentences made from a study's `published` and its leaderboard."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.params import PublishedParams
from pneumolib.reporting.prose import row_interval, say

OFFICIAL_TEST_IMAGES = 624


def published_table(board: pd.DataFrame, published: PublishedParams) -> pd.DataFrame:
    """Published figures and ours, one row each; a run that repeats a published system stands below it.

    Args:
        board: `results.leaderboard`.
        published: the study's.
    Returns:
        columns `System or run`, `Figures` (published, or measured here), `Test set` (official test, or other data), and one
        for each metric that someone published.
        Empty when nothing is.
    """
    names = _metrics(published)
    if not names:
        return pd.DataFrame()
    ours = {row["run"]: row for row in board.to_dict("records")}
    rows = []
    for system, figures in published.figures.items():
        place = "other data" if system in published.other_data else "official test"
        start = {"System or run": system, "Figures": "published", "Test set": place}
        cells = {METRIC_NAMES[name]: f"{figures[name]:.3f}" if name in figures else "" for name in names}
        rows.append(start | cells)
        if system in ours:
            rows.append(_measured(ours.pop(system), names))
    return pd.DataFrame(rows + [_measured(row, names) for row in ours.values()])


def _measured(row: dict, names: list[str]) -> dict[str, str]:
    official = row["test_images"] == OFFICIAL_TEST_IMAGES and not row["synthetic"]
    drawn = "drawn " if row["synthetic"] else ""
    place = "official test" if official else f"other data, {row['test_images']} {drawn}images"
    return {"System or run": row["run"], "Figures": "measured", "Test set": place} | {
        METRIC_NAMES[name]: row_interval(row, name) for name in names
    }


def _metrics(published: PublishedParams) -> list[str]:
    """The metrics of which a figure was published, in the usual order."""
    return [name for name in METRIC_NAMES if any(name in figures for figures in published.figures.values())]


def published_summary(board: pd.DataFrame, published: PublishedParams) -> Markdown:
    """How far our figures lie from the published ones, run by run; where those come from, and what they cannot say."""
    if not published.figures:
        return Markdown("")
    ours = {row["run"]: row for row in board.to_dict("records")}
    rows = [
        {"run": run, "metrics": _beside(ours[run], figures)}
        for run, figures in published.figures.items()
        if run in ours
    ]
    return say("training.published", rows=rows, source=published.source)


def _beside(row: dict, figures: dict[str, float]) -> list[dict]:
    """Our figures and the published ones, a metric each."""
    return [
        {"title": title if title.isupper() else title.lower(), "published": figures[name], "value": row[name],
         "difference": row[name] - figures[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
        for name, title in METRIC_NAMES.items() if name in figures
    ]  # fmt: skip
