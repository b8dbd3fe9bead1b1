"""The runs of a study against each other, and published figures beside them: only where they can be compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pneumolib.errors import ResultError
from pneumolib.evaluation.metrics import METRIC_NAMES, METRICS
from pneumolib.params import EvaluationParams, PublishedParams
from pneumolib.project import params_folder, run_folder, swept
from pneumolib.reporting.prose import has_random_backbone, say, table
from pneumolib.reporting.results import PREDICTIONS_FILE, Result, in_words, plain

# Evaluation parameters that may differ between runs of one table: they move neither the values nor the resamples.
_OF_ONE_RUN = {"seeds", "calibration", "refer_fraction", "subgroups"}


def leaderboard(results: list[Result]) -> pd.DataFrame:
    """One row a training run, ordered by validation AUROC: the order never looks at test.

    A run of several seeds stands with their mean, so that no lucky seed stands for it.

    Columns: `run, seeds, validation_auroc`, then for each test metric `<metric>, <metric>_low, <metric>_high`, `auroc_sd`
    over seeds, then `threshold` (of the run's own seed), `parameters, epochs, minutes, milliseconds_per_image, test_images,
    synthetic`. Empty, with these columns, when there is no training run. What cannot be computed is NaN.
    Raises:
        ResultError: runs of different data, splits or evaluation parameters, whose figures must not stand in one table.
    """
    trained = [r for r in results if r.metrics.get("test")]
    if found := unlike(trained):
        raise ResultError(
            f"runs of different data, splits or evaluation parameters cannot be ranked: {', '.join(found['runs'])} differ in "
            f"{' and '.join(found['differ'])}. Run `make report` again"
        )
    columns = [c for n in METRICS for c in (n, f"{n}_low", f"{n}_high")]
    costs = ["threshold", "parameters", "epochs", "minutes", "milliseconds_per_image", "test_images", "synthetic"]
    names = ["run", "seeds", "validation_auroc", *columns, "auroc_sd", *costs]
    table = pd.DataFrame([_leaderboard_row(r) for r in trained], columns=names)
    table = table.astype(dict.fromkeys(["validation_auroc", "auroc_sd", *columns], float))
    return table.sort_values("validation_auroc", ascending=False, ignore_index=True)


def unlike(results: list[Result]) -> dict[str, Any] | None:
    """Why the training runs among `results` cannot be ranked, and what each was made from; None where they can."""
    runs = {
        r.run: {
            "data": r.data.fingerprint,
            "split": r.data.split_fingerprint or "none",
            "images": "synthetic" if r.synthetic else "real",
            "evaluation": str({k: v for k, v in r.parameters.get("evaluation", {}).items() if k not in _OF_ONE_RUN}),
        }
        for r in results
        if r.metrics.get("test")
    }
    aspects = ("data", "split", "images", "evaluation")
    differ = [name for name in aspects if len({made[name] for made in runs.values()}) > 1]
    return {"differ": differ, "runs": runs} if differ else None


def _leaderboard_row(result: Result) -> dict[str, Any]:
    facts = result.facts
    row = {"run": result.run, "seeds": result.seeds(), "validation_auroc": result.metric("auroc", "validation").value}
    for name in METRICS:
        entry = result.metric(name)
        row |= {name: entry.value, f"{name}_low": entry.low, f"{name}_high": entry.high}
    return row | {
        "auroc_sd": result.spread["test"]["auroc"].sd if result.seeds() > 1 else None,
        "threshold": result.threshold.value,
        "minutes": facts["training_seconds"] / 60,
        "synthetic": result.synthetic,
        **{name: facts.get(name) for name in ("parameters", "epochs", "milliseconds_per_image", "test_images")},
    }


def read_prediction_table(file: Path) -> pd.DataFrame:
    """A table of predictions as it was written: ids and groups stay text, also where they look like numbers."""
    text = dict.fromkeys(("image_id", "split", "kind", "group_id"), str)
    return pd.read_csv(file, dtype=text, keep_default_na=False)


@dataclass(frozen=True)
class Comparison:
    """All training runs of a study on the same test images and the same resamples.

    Attributes:
        reference: the run that is best on validation; None without a finished run.
        differences: `evaluation.paired_differences` from it; empty with fewer than two runs.
        tests: `evaluation.secondary_tests` against it; empty likewise.
        bands: run to `evaluation.curve_bands` of test.
    """

    reference: str | None
    differences: pd.DataFrame
    tests: pd.DataFrame
    bands: dict[str, pd.DataFrame]


def compare_runs(results: list[Result]) -> Comparison:
    """Every training run among `results` against the one that is best on validation, each at its own frozen threshold.

    Of a run of several seeds the predictions are those of its own seed.

    Raises:
        ResultError: see `leaderboard`.
    """
    # Imported here: the index reads the leaderboard and must not wait for statistics.
    from pneumolib.evaluation.compare import paired_differences, secondary_tests
    from pneumolib.evaluation.curves import curve_bands

    board = leaderboard(results)
    if board.empty:
        return Comparison(None, pd.DataFrame(), pd.DataFrame(), {})
    trained = {r.run: r for r in results if r.metrics.get("test")}
    reference = str(board.run[0])
    # Evaluation parameters and seed are the same in all training runs: `leaderboard` has seen to it.
    shared = trained[reference].parameters
    options = {"params": EvaluationParams(**shared["evaluation"]), "seed": shared["split"]["seed"]}
    study = trained[reference].study
    predictions = {run: read_prediction_table(run_folder(study, run) / PREDICTIONS_FILE) for run in board.run}
    bands = {run: curve_bands(table, **options, splits=("test",)) for run, table in predictions.items()}
    thresholds = {run: result.threshold.value for run, result in trained.items()}
    differences = paired_differences(predictions, "test", thresholds, reference, **options)
    return Comparison(reference, differences, secondary_tests(predictions, "test", thresholds, reference), bands)


def sweeps(study: str, results: list[Result]) -> dict[str, pd.DataFrame]:
    """Each `sweep` of the study's parameter files, by the file's name: one row a finished run.

    Columns: `run`, `validation_auroc` (a choice of parameters by test would make test too good), and one for each swept key.
    """
    found = {r.run: r.metric("auroc", "validation") for r in results}
    tables = {}
    for file in sorted(params_folder(study).glob("*.yaml")):
        rows = [{"run": run, "validation_auroc": found[run].value} | values
                for run, values in swept(file).items() if values and found.get(run)]  # fmt: skip
        tables |= {file.stem: pd.DataFrame(rows)} if rows else {}
    return tables


def own_metrics_table(results: list[Result]) -> pd.DataFrame:
    """Metrics of a researcher's own on test, see `evaluation.own_metrics`: one row a run that has any, one column a metric."""
    rows = [{"Run": r.run} | {n: in_words(v) for n, v in r.own_metrics.items()} for r in results if r.own_metrics]
    return pd.DataFrame(rows).fillna("not computed")


def difference_summary(compared: Comparison) -> Any:
    """Which runs differ from the reference in AUROC by more than chance, in words."""
    rows = compared.differences.to_dict("records")
    others = [row for row in rows if row["metric"] == "auroc" and row["name"] != compared.reference]
    return say("training.differences", rows=others, reference=compared.reference)


def leading(results: list[Result], compared: Comparison) -> dict[str, Any]:
    """Which run leads and by how much, as plain values for `checks.comparison` of `result.json`; empty without a run.

    Args:
        results: all of the study.
        compared: of them, by `compare_runs`.
    Returns:
        `reference`, the run that is best on validation; `validation_auroc`; `auroc` on test with its limits; `differences` in
        AUROC of the other runs, in the order of validation; `random_backbones`, runs that transfer nothing.
    """
    board = leaderboard(results)
    if board.empty:
        return {}
    rows = [row for row in compared.differences.to_dict("records") if row["metric"] == "auroc"]
    columns = ("name", "difference", "difference_low", "difference_high")
    best = board.iloc[0].to_dict()
    return plain({
        "reference": best["run"],
        **{name: best[name] for name in ("validation_auroc", "auroc", "auroc_low", "auroc_high")},
        "differences": [{key: row[key] for key in columns} for row in rows if row["name"] != best["run"]],
        "random_backbones": [r.run for r in results if r.run in set(board.run) and has_random_backbone(r)],
    })  # fmt: skip


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
    if not published.figures:
        return pd.DataFrame()
    names = [name for name in METRIC_NAMES if any(name in figures for figures in published.figures.values())]
    return table("published_and_measured_figures", board, published.model_dump(), names, OFFICIAL_TEST_IMAGES)


def published_summary(board: pd.DataFrame, published: PublishedParams) -> Any:
    """How far our figures lie from the published ones, run by run; where those come from, and what they cannot say."""
    ours = {row["run"]: row for row in board.to_dict("records")}
    return say("training.published", published=published, ours=ours, names=METRIC_NAMES)
