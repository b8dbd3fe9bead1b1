"""Sentences and tables about histogram equalisation, made from results. No number on a page is typed by hand."""

import pandas as pd
from IPython.display import Markdown

from pneumolib.reporting.equalisation_plots import WAYS
from pneumolib.reporting.prose import say
from pneumolib.reporting.results import Result, intervals


def distance_words(distances: dict[str, dict[str, float]]) -> pd.DataFrame:
    """`data.grey_distances` of each way, for reading."""
    titles = {
        "classes": "normal against pneumonia (training)",
        "shift_normal": "training against test, normal",
        "shift_pneumonia": "training against test, pneumonia",
    }
    rows = [{"Images": WAYS[way]} | {titles[k]: f"{v:.1f}" for k, v in d.items()} for way, d in distances.items()]
    return pd.DataFrame(rows)


def comparison_words(compared: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`evaluation.compare_auroc` of validation and test, for reading."""
    table = pd.DataFrame({"Images": compared["test"].name.map(WAYS)})
    for part, title in (("val", "validation"), ("test", "test")):
        rows = compared[part]
        table[f"AUROC, {title}"] = intervals(rows, "auroc")
        differences = pd.Series(intervals(rows, "difference", signed=True), rows.index)
        table[f"Difference, {title}"] = differences.mask(rows.name == "none", "").to_numpy()
    return table


def comparison_table(compared: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The same for `data_plots.auroc_intervals`: `name`, and AUROC with its limits for validation and test."""
    table = pd.DataFrame({"name": compared["test"].name.map(WAYS)})
    for part, title in (("val", "validation"), ("test", "test")):
        for end in ("", "_low", "_high"):
            table[f"{title}{end}"] = compared[part][f"auroc{end}"].to_numpy()
    return table


def comparison_facts(compared: dict[str, pd.DataFrame]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The same for `result.json`: split to way to figures; NaN becomes null."""
    return {
        part: {
            row["name"]: {k: None if pd.isna(v) else round(float(v), 6) for k, v in row.items() if k != "name"}
            for row in table.to_dict("records")
        }
        for part, table in compared.items()
    }


def training_facts(histories: dict[str, pd.DataFrame]) -> dict[str, dict[str, int]]:
    """Epochs of each training and the one that was kept, for `result.json`."""
    return {
        way: {"epochs": len(history), "best_epoch": int(history.epoch[history.val_auroc.idxmax()])}
        for way, history in histories.items()
    }


def equalisation_summary(result: Result) -> Markdown:
    """What equalisation did to the scores, read from `result.json`."""
    titles = {"test": "test", "val": "validation"}
    parts = {title: result.checks["equalisation"][part] for part, title in titles.items()}
    said = {title: {way: _direction(rows[way]) for way in ("hist", "clahe")} for title, rows in parts.items()}
    trainings = result.facts["trainings"].items()
    return say(
        "equalisation.summary",
        parts=parts,
        ways=WAYS,
        directions=said,
        verdicts=_verdicts(said["test"]),
        open_ended=[WAYS[way] for way, facts in trainings if facts["best_epoch"] >= facts["epochs"] - 1],
        synthetic=result.synthetic,
    )


def _direction(row: dict[str, float | None]) -> str:
    if row["difference_low"] is None:
        return "which cannot be judged"
    if row["difference_low"] > 0:
        return "an improvement"
    return "a loss" if row["difference_high"] < 0 else "which does not show a difference"


_ON_TEST = {
    "an improvement": "scored higher on test",
    "a loss": "scored lower on test",
    "which does not show a difference": "made no difference that could be shown on test",
    "which cannot be judged": "could not be judged on test",
}


def _verdicts(said: dict[str, str]) -> list[str]:
    """HE and CLAHE by what `_direction` says of them, ways of the same direction together."""
    ways = {key: [WAYS[way] for way, direction in said.items() if direction == key] for key in _ON_TEST}
    return [f"{' and '.join(names)} {_ON_TEST[key]}" for key, names in ways.items() if names]
