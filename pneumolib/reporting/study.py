"""Which runs of a study are due, in which order, and why. Asking takes less than two seconds: no TensorFlow here."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pneumolib.data.manifest import read_manifest
from pneumolib.errors import DataError, ParamsError, ResultError
from pneumolib.params import DataParams, RunParams
from pneumolib.project import SMOKE, in_root, load_run, notebook_of, project_root, report_command
from pneumolib.reporting.inputs import declared_parameters, differences, gather, notebook_path
from pneumolib.reporting.results import RESULT_FILE, read_result

# Notebooks that train and leave predictions.csv; a comparison is built on all of them.
TRAINING = ("03_baseline_cnn", "04_transfer_learning", "05_fine_tuning")
FINE_TUNING, COMPARISON, EXTERNAL = "05_fine_tuning", "06_comparison", "07_external_validation"


@dataclass(frozen=True)
class Step:
    """One run of a study and whether it is due.

    Attributes:
        path: its parameter file.
        params: checked parameters.
        inputs: what it would be made from now.
        upstream: runs whose results it builds on.
        reasons: why it is due, in words; empty when it is up to date.
        forced: a training begins anew, whatever is kept of an earlier one.
    """

    path: Path
    params: RunParams
    inputs: dict[str, Any]
    upstream: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    forced: bool = False

    @property
    def study(self) -> str:
        """Its folder's name; with `-smoke` when it is run small."""
        return self.params.study

    @property
    def run(self) -> str:
        return self.path.stem

    @property
    def folder(self) -> Path:
        """Where the finished run lies."""
        return run_folder(self.study, self.run)

    def lock(self) -> FileLock:
        """Held by the one process that may write this run's folders."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.parent / f".{self.run}.lock")

    @property
    def page(self) -> Path:
        return in_root(f"reports/{self.study}/{self.run}.html")


def run_folder(study: str, run: str) -> Path:
    """Where a finished run lies; what is there is whole."""
    return in_root(f"runs/{study}/{run}")


def set_aside_folder(study: str, run: str) -> Path:
    """Where an out-of-date result waits until the new one has succeeded."""
    return in_root(f"runs/{study}/.previous/{run}")


def training_folder(study: str, run: str) -> Path:
    """Where a training keeps its checkpoints, a finished one too; see `Session.training_folder`."""
    return in_root(f"runs/{study}/.training/{run}")


def run_files(study_dir: Path) -> list[Path]:
    """The run files of a study, in the order of their numbers. Raises ParamsError when there are none."""
    if not study_dir.is_dir():
        if study_dir.name.endswith(SMOKE):
            raise ParamsError(
                f"{study_dir}: no such study; a smoke run is asked for by {report_command(study_dir.name)}"
            )
        found = sorted(p.parent.name for p in in_root("params").glob("*/study.yaml"))
        raise ParamsError(f"{study_dir}: no such study. Studies found: {', '.join(found) or 'none'}")
    files = sorted(p for p in study_dir.glob("*.yaml") if p.name != "study.yaml")
    if not files:
        raise ParamsError(f"{study_dir}: holds no NN_<notebook>.yaml")
    return files


def plan(study_dir: Path, data_root: str | None = None, force: bool = False, smoke: bool = False) -> list[Step]:
    """Every run of a study with the reasons why it is due.

    All parameter files are checked before any data is touched; then the data is listed (drawn, for a synthetic
    source), and each run is compared with what its last result was made from.

    Args:
        study_dir: `params/<study>`.
        data_root: replaces `data.root`.
        force: every run is due, and trains anew.
        smoke: the study made small, with results of its own; see `smoke`.
    Raises:
        ParamsError: one line for each fault in any of the files.
        DataError: data that cannot be used.
    """
    loaded = _load_all(run_files(study_dir), data_root, smoke)
    known: dict[DataParams, str] = {}
    steps: list[Step] = []
    for path, params in loaded.items():
        for source in _sources(path.stem, params):
            known[source] = known.get(source) or _fingerprint(path, params, source)
        fingerprint = "+".join(known[source] for source in _sources(path.stem, params))
        steps.append(_compare(path, params, fingerprint, steps, force))
    return steps


def _sources(run: str, params: RunParams) -> list[DataParams]:
    """The study's own images and, for an external validation, those of another source."""
    return [params.data, params.external.data] if notebook_of(run) == EXTERNAL else [params.data]


def _fingerprint(path: Path, params: RunParams, source: DataParams) -> str:
    try:
        return read_manifest(source).fingerprint
    except DataError as fault:
        # Its message speaks of `data.root`, which a study has two of then.
        raise fault if source is params.data else DataError(f"{path}: external: {fault}") from None


def _load_all(files: list[Path], data_root: str | None, smoke: bool) -> dict[Path, RunParams]:
    loaded, faults = {}, []
    for path in files:
        try:
            params, own = load_run(path, data_root, smoke)
            declared = declared_parameters(notebook_path(path.stem))
            if unused := sorted(own - declared.keys()):
                raise ParamsError(
                    f"{path}: {unused[0]}: notebook {notebook_of(path.stem)} does not use it, so it would have no "
                    f"effect. It uses: {', '.join(declared)}"
                )
            _check_continued(path, params)
            _check_tried(path, params)
            loaded[path] = params
        except ParamsError as fault:
            faults += str(fault).replace(f"{project_root()}{os.sep}", "").splitlines()
    if faults:
        raise ParamsError("\n".join(dict.fromkeys(faults)))
    return loaded


def _check_continued(path: Path, params: RunParams) -> None:
    """Raise ParamsError where a fine-tuning has no run to continue."""
    if notebook_of(path.stem) != FINE_TUNING:
        return
    wanted = path.with_stem(continued_run(path.stem, params))
    if not wanted.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.yaml") if p.stem.startswith(TRAINING[:2]))
        raise ParamsError(
            f"{path}: fine_tuning.continues: received {params.fine_tuning.continues!r}, so it builds on {wanted}: no such "
            f"file. Add it, or give both runs the same variant. Runs that can be continued: {', '.join(beside) or 'none'}"
        )


def _check_tried(path: Path, params: RunParams) -> None:
    """Raise ParamsError where an external validation has no model to try."""
    run = params.external.run
    if notebook_of(path.stem) != EXTERNAL:
        return
    beside = sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem.startswith(TRAINING))
    if run not in beside:
        raise ParamsError(
            f"{path}: external.run: received {run!r}; needed is a run of this study that trains a network: "
            f"{', '.join(beside) or 'it has none'}"
        )


def continued_run(run: str, params: RunParams) -> str:
    """The run that a fine-tuning goes on from: `05_fine_tuning-vgg19` from `04_transfer_learning-vgg19`."""
    return params.fine_tuning.continues + run.removeprefix(FINE_TUNING)


def upstream_of(run: str, params: RunParams, runs: list[str]) -> list[str]:
    """The runs among `runs` that `run` builds on."""
    if notebook_of(run) == FINE_TUNING:
        return [other for other in runs if other == continued_run(run, params)]
    if notebook_of(run) == EXTERNAL:
        return [other for other in runs if other == params.external.run]
    return [other for other in runs if notebook_of(other) in TRAINING] if notebook_of(run) == COMPARISON else []


def _compare(path: Path, params: RunParams, fingerprint: str, before: list[Step], force: bool) -> Step:
    """One run against its last result, given the runs before it."""
    upstream = upstream_of(path.stem, params, [step.run for step in before])
    inputs = gather(path.stem, params, fingerprint, upstream_digests(params.study, upstream))
    reasons = [f"{step.run} runs again" for step in before if step.run in upstream and step.reasons]
    step = Step(path, params, inputs, upstream, ["FORCE=1"] if force else reasons, force)
    if force or reasons:
        return step
    restore_previous(step)
    try:
        result = read_result(step.folder)
        gone = [f"{name} is gone" for name in result.artefacts if not (step.folder / name).is_file()]
        reasons = differences(result.inputs, inputs) + gone
    except ResultError as fault:
        there = (step.folder / RESULT_FILE).exists()
        reasons = [str(fault).splitlines()[0] if there else "has not finished yet"]
    return Step(path, params, inputs, upstream, reasons)


def still_due(steps: list[Step], executed: list[Step]) -> list[str]:
    """Runs that are out of date once `executed` are done: due and not among them, or built on one and not run since."""
    done = [step.run for step in executed]
    return [s.run for s in steps if s.run not in done and (s.reasons or set(s.upstream) & set(done))]


def upstream_digests(study: str, runs: list[str]) -> dict[str, str]:
    """Run to hash of its `result.json`; `none` where it has not finished."""
    files = {run: run_folder(study, run) / RESULT_FILE for run in runs}
    return {r: hashlib.sha256(f.read_bytes()).hexdigest()[:16] if f.is_file() else "none" for r, f in files.items()}


def restore_previous(step: Step) -> None:
    """Bring back a result that was set aside, when a change that failed has been taken back: it is whole and right."""
    previous = set_aside_folder(step.study, step.run)
    if step.folder.exists() or not (previous / RESULT_FILE).is_file():
        return
    try:
        with step.lock().acquire(timeout=0):
            if not differences(read_result(previous).inputs, step.inputs) and not step.folder.exists():
                os.replace(previous, step.folder)
    except (ResultError, Timeout):
        return  # not readable, or a process is at work on this run and will put its own result there
