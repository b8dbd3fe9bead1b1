"""`result.json`: what a run found, what it was made from, and on what machine. Checked on write and on read."""

import json
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import in_root, params_folder

RESULT_FILE = "result.json"
Fraction = Annotated[float, Field(ge=0, le=1)]


class ResultError(ValueError):
    """A `result.json` that cannot be read; the message names file and field."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricResult(_Part):
    """A value with its interval; null where it could not be computed."""

    value: Fraction | None
    low: Fraction | None
    high: Fraction | None


class ThresholdResult(_Part):
    """The frozen threshold on the probability; `chosen_on` is a constant, one chosen on test cannot be written."""

    value: float
    rule: str
    sensitivity: Fraction
    specificity: Fraction
    chosen_on: Literal["validation"] = "validation"


class DataResult(_Part):
    """Which images a run saw; runs are compared only where both fingerprints agree."""

    fingerprint: str
    images: int
    groups: int
    left_out: int
    split_fingerprint: str | None = None


class Provenance(_Part):
    """Where a result comes from; `seconds` is the notebook's wall time."""

    commit: str | None
    dirty: bool | None
    started: datetime
    finished: datetime
    seconds: float
    python: str
    platform: str
    versions: dict[str, str]
    device: dict[str, Any]


class Result(_Part):
    """One finished run."""

    schema_version: Literal[1] = 1
    study: str
    run: str
    notebook: str
    synthetic: bool
    parameters: dict[str, Any]
    data: DataResult
    threshold: ThresholdResult | None = None
    metrics: dict[Literal["validation", "test"], dict[str, MetricResult]] = {}
    facts: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    provenance: Provenance
    inputs: dict[str, Any] = {}
    artefacts: list[str] = []

    def metric(self, name: str, part: str = "test") -> MetricResult | None:
        """One metric of `test` or `validation`, None where the run has none."""
        return self.metrics.get(part, {}).get(name)


def metrics_of(table: pd.DataFrame) -> dict[str, MetricResult]:
    """The rows of `evaluation.metric_table` as result entries; NaN becomes null."""
    return {
        row.metric: MetricResult(
            **{k: None if math.isnan(v := getattr(row, k)) else v for k in ("value", "low", "high")}
        )
        for row in table.itertuples()
    }


def in_words(metric: MetricResult | None) -> str:
    """`0.871 (0.823-0.912)`, with words where there is nothing to compute."""
    if metric is None or metric.value is None:
        return "not computable"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f} (interval not computable)"
    return f"{metric.value:.3f} ({metric.low:.3f}-{metric.high:.3f})"


def write_result(result: Result, folder: Path) -> Path:
    """Write atomically, so that a file that is there is whole."""
    file = folder / RESULT_FILE
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)
    return file


def read_result(folder: Path) -> Result:
    """Read and check one run's result. Raises ResultError when it is missing or does not fit."""
    file = folder / RESULT_FILE
    try:
        return Result.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ResultError(f"{file}: no such file; the run has not finished") from None
    except (json.JSONDecodeError, ValidationError) as fault:
        raise ResultError(f"{file}: {fault}") from None


def read_results(study: str) -> list[Result]:
    """All finished runs of a study, by name; without those whose parameter file is gone from `params/<study>`."""
    named = {file.stem for file in params_folder(study).glob("*.yaml")}
    folders = sorted(file.parent for file in in_root(f"runs/{study}").glob(f"*/{RESULT_FILE}"))
    return [read_result(f) for f in folders if f.name in named]


def leaderboard(results: list[Result]) -> pd.DataFrame:
    """One row a training run, ordered by validation AUROC: the order never looks at test.

    Columns: `run, validation_auroc`, then for each test metric `<metric>, <metric>_low, <metric>_high`, then
    `threshold, parameters, epochs, minutes`. Empty, with these columns, when there is no training run.
    Raises:
        ResultError: runs of different data, splits or evaluation parameters, whose figures must not stand in one table.
    """
    trained = [r for r in results if r.metrics.get("test")]
    kinds = {
        (r.data.fingerprint, r.data.split_fingerprint, r.synthetic, str(r.parameters.get("evaluation")))
        for r in trained
    }
    if len(kinds) > 1:
        pairs = ", ".join(f"{r.run}: data {r.data.fingerprint}, split {r.data.split_fingerprint}" for r in trained)
        raise ResultError(
            f"runs of different data, splits or evaluation parameters cannot be ranked: {pairs}. Run `make report` again"
        )
    columns = [c for n in METRICS for c in (n, f"{n}_low", f"{n}_high")]
    rows = [_leaderboard_row(r) for r in trained]
    table = pd.DataFrame(
        rows, columns=["run", "validation_auroc", *columns, "threshold", "parameters", "epochs", "minutes"]
    )
    return table.sort_values("validation_auroc", ascending=False, ignore_index=True)


def _leaderboard_row(result: Result) -> dict[str, Any]:
    row = {"run": result.run, "validation_auroc": result.metrics["validation"]["auroc"].value}
    for name in METRICS:
        entry = result.metrics["test"][name]
        row |= {name: entry.value, f"{name}_low": entry.low, f"{name}_high": entry.high}
    return row | {
        "threshold": result.threshold.value,
        "parameters": result.facts.get("parameters"),
        "epochs": result.facts.get("epochs"),
        "minutes": result.facts["training_seconds"] / 60,
    }
