"""`result.json`: what a run found, what it was made from, and on what machine. Checked on write and on read.

`docs/result.schema.json` holds its types and bounds as a JSON Schema, for programs in other languages; `pneumolib schema` prints it.
"""

import filecmp
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict

from pneumolib.data.facts import TrainingReference
from pneumolib.errors import ResultError
from pneumolib.evaluation.calibration import Calibration, Threshold
from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import Fraction
from pneumolib.project import in_root, params_folder, swept, write_whole

RESULT_FILE, MODEL_FILE, PREDICTIONS_FILE = "result.json", "model.keras", "predictions.csv"
NOT_COMPUTABLE = "not computable"
VERSION = 4  # of the schema
MOST_BYTES = 64 * 2**20  # of a result.json; those of real studies have less than one megabyte
_INSTEAD = "Run the run again (make report), or read it with the pneumolib that wrote it"


_CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Part(BaseModel):
    model_config = _CONFIG


Bounds = TypeVar("Bounds")


class _Interval(_Part, Generic[Bounds]):
    """A value with its interval; null where it could not be computed."""

    value: Bounds | None
    low: Bounds | None
    high: Bounds | None

    @model_validator(mode="after")
    def _limits_in_order(self):
        if (self.low is None) != (self.high is None) or (self.low is not None and self.low > self.high):
            raise ValueError(f"low {self.low} and high {self.high}: needed are both in this order, or neither")
        return self


NotNegative = Annotated[float, Field(ge=0)]
MetricResult = _Interval[Fraction]
_KINDS = {"mcc": _Interval[Annotated[float, Field(ge=-1, le=1)]], "log_loss": _Interval[NotNegative]}
SplitMetrics = TypedDict("SplitMetrics", {name: _KINDS.get(name, MetricResult) for name in METRICS})


class SpreadResult(_Part):
    """A metric over several training seeds: the mean with its interval, and the spread over seeds."""

    seeds: Annotated[int, Field(ge=2)]
    mean: float | None
    low: float | None
    high: float | None
    sd: NotNegative | None
    lowest: float | None
    highest: float | None


@dataclass(frozen=True)
class CalibrationResult(Calibration):
    """The frozen map from logit to probability; `chosen_on` is a constant."""

    # Needed in every file.
    slope: float = field(kw_only=True)
    intercept: float = field(kw_only=True)
    logits: tuple[float, ...] = field(kw_only=True)
    probabilities: tuple[Fraction, ...] = field(kw_only=True)
    chosen_on: Literal["validation"] = field(kw_only=True)
    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class ThresholdResult(Threshold):
    """The frozen threshold on the calibrated probability; `chosen_on` is a constant, one chosen on test cannot be written."""

    chosen_on: Literal["validation"] = field(kw_only=True)  # needed in every file
    __pydantic_config__ = _CONFIG


class SourceResult(_Part):
    """Which images a source holds, and how many files of it could not be used."""

    fingerprint: str
    images: int
    groups: int
    left_out: int
    columns: list[str] = []  # further ones of a table of paths


class DataResult(SourceResult):
    """Which images a run saw; runs are compared only where both fingerprints agree.

    `external` is the other source that a frozen model was tried on, where the run did that.
    """

    split_fingerprint: str | None = None
    external: SourceResult | None = None

    @property
    def fingerprints(self) -> str:
        """Of all images that a run's figures hang on, as `study.plan` joins them."""
        return "+".join(source.fingerprint for source in (self, self.external) if source)


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

    schema_version: Literal[VERSION]
    study: str
    run: str
    notebook: str
    synthetic: bool
    parameters: dict[str, Any]
    data: DataResult
    threshold: ThresholdResult | None = None
    calibration: CalibrationResult | None = None
    ood: TrainingReference | None = None  # what the training images are like
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None  # of the file model.keras
    metrics: dict[Literal["validation", "test"], SplitMetrics] = {}
    spread: dict[Literal["validation", "test"], dict[Literal[*METRICS], SpreadResult]] = {}
    own_metrics: dict[str, _Interval[float]] = {}  # of test
    facts: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    provenance: Provenance
    inputs: dict[str, Any] = {}
    artefacts: list[str] = []

    @model_validator(mode="after")
    def _test_at_a_frozen_threshold(self):
        if self.metrics.get("test") and self.threshold is None:
            raise ValueError("metrics of test need the threshold that was frozen on validation")
        return self

    def metric(self, name: str, part: str = "test") -> _Interval | None:
        """One metric of `test` or `validation`, None where the run has none; the mean over seeds where there are several.

        For tables that rank runs or stand for one; what belongs to its one `model.keras` is `own`.
        """
        entry, several = self.own(name, part), self.spread.get(part, {}).get(name)
        if entry is None or several is None:
            return entry
        return type(entry)(value=several.mean, low=several.low, high=several.high)

    def own(self, name: str, part: str = "test") -> _Interval | None:
        """One metric of the run's own seed, that of its `model.keras` and its threshold; None where the run has none."""
        return self.metrics.get(part, {}).get(name)

    def seeds(self) -> int:
        """How many seeds the training was run from."""
        several = self.spread.get("test", {}).get("auroc")
        return several.seeds if several else 1


def by_metric(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The rows of a table of metrics as `Result` takes them: the metric's name to its other columns, NaN as null."""
    return {row.pop("metric"): row for row in plain(table)}


def plain(value: Any) -> Any:
    """A value as JSON has it: NumPy's scalars as Python's, NaN as null, tables as rows, all the way down."""
    if isinstance(value, pd.DataFrame):
        return plain(value.to_dict("records"))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_words(metric: _Interval | None) -> str:
    """`0.871 (0.823 to 0.912)`, with words where there is nothing to compute."""
    return interval(metric.value, metric.low, metric.high) if metric else interval(None, None, None)


def interval(
    value: float | None, low: float | None, high: float | None, signed: bool = False, form: str = ".3f"
) -> str:
    """`0.871 (0.823 to 0.912)`, `+0.012 (-0.004 to +0.027)`, `0.871 (no interval)` or `not computable`."""
    value, *limits = (figure_words(number, f"+{form}" if signed else form) for number in (value, low, high))
    if NOT_COMPUTABLE in (value, *limits):
        return value if value == NOT_COMPUTABLE else f"{value} (no interval)"
    return f"{value} ({limits[0]} to {limits[1]})"


def figure_words(value: float | None, form: str = ".3f") -> str:
    """`0.871`, or words for what cannot be computed."""
    return NOT_COMPUTABLE if value is None or pd.isna(value) else format(value, form)


def write_result(result: Result, folder: Path) -> Path:
    """Write atomically, so that a file that is there is whole, and nothing that could not be read again.

    Raises:
        ResultError: a value that the contract does not allow, such as a fraction above 1.
    """
    file = folder / RESULT_FILE
    text = result.model_dump_json(indent=1) + "\n"
    _checked(text, file)
    write_whole(file, text)
    return file


def checks_of_training(result: Result) -> dict[str, Any]:
    """The checks that a training leaves; an evaluation adds the others."""
    return {name: result.checks[name] for name in ("split", "continues") if name in result.checks}


def complete(trained: Path, evaluation: Path | None = None) -> None:
    """Take what an evaluation found into result and predictions of its training; without an evaluation, take it out again.

    Args:
        trained, evaluation: the folders of two runs. What is there already is not written again.
    Raises:
        ResultError: the evaluation left no predictions, or tested another network.
    """
    result, kept = read_result(trained), trained / PREDICTIONS_FILE
    if evaluation is None:
        validation = {part: found for part, found in result.metrics.items() if part == "validation"}
        changes = {"metrics": validation, "spread": {}, "own_metrics": {}, "checks": checks_of_training(result)}
    else:
        found, file = read_result(evaluation), evaluation / PREDICTIONS_FILE
        if not file.is_file():
            raise ResultError(f"{evaluation}: holds no {file.name}: the notebook must save it, see its last section")
        if found.model_sha256 != result.model_sha256:
            raise ResultError(f"{trained}: was trained again while it was evaluated; run the evaluation again")
        names = ("parameters", "metrics", "spread", "own_metrics", "facts", "checks")
        changes = {name: getattr(found, name) for name in names}
        if not kept.is_file() or not filecmp.cmp(file, kept, shallow=False):
            write_whole(kept, file.read_text(encoding="utf-8"))
    completed = result.model_copy(update=changes)
    if completed != result:
        write_result(completed, trained)


def read_result(folder: Path) -> Result:
    """Read and check one run's result. Raises ResultError when it is missing, of another version, or does not fit."""
    file = folder / RESULT_FILE
    try:
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            raise ResultError(f"{file}: {file.stat().st_size:,} bytes; allowed are {MOST_BYTES:,}. {_INSTEAD}")
        return _checked(file.read_bytes(), file)
    except FileNotFoundError:
        raise ResultError(f"{file}: no such file; the run has not finished") from None
    except OSError as fault:
        raise ResultError(f"{file}: cannot be read: {fault.strerror}") from None


def _checked(text: str | bytes, file: Path) -> Result:
    try:
        return Result.model_validate_json(text, strict=True)
    except ValidationError as fault:
        raise ResultError(f"{file}: {fault_words(fault)}") from None


def fault_words(fault: ValidationError) -> str:
    """The version where it is another one, else the first of all faults; on one line, with what to do."""
    first, *others = sorted(fault.errors(include_url=False), key=lambda one: one["loc"] != ("schema_version",))
    if first["loc"] == ("schema_version",):
        found = "missing" if first["type"] == "missing" else f"{first['input']!r:.40}"
        return f"schema_version is {found}; this pneumolib reads version {VERSION}. {_INSTEAD}"
    place = f"{'.'.join(map(str, first['loc']))}: received {first['input']!r:.60}: " if first["loc"] else ""
    return f"{place}{first['msg']}{f' ({len(others)} more faults)' if others else ''}. {_INSTEAD}"


def result_schema() -> dict[str, Any]:
    """The contract of `result.json` as a JSON Schema (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Result.model_json_schema()


def read_results(study: str) -> list[Result]:
    """All finished runs of a study with a parameter file in `params/<study>`, by name.

    Evaluations have none: what they found is in the results of their trainings.
    """
    named = {run for file in params_folder(study).glob("*.yaml") for run in swept(file)}
    folders = sorted(file.parent for file in in_root(f"runs/{study}").glob(f"*/{RESULT_FILE}"))
    return [read_result(f) for f in folders if f.name in named]
