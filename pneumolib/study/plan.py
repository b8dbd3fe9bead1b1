"""Which runs of a study are due, in which order, and why. Asking takes less than two seconds: no TensorFlow here."""

import functools
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pneumolib import project
from pneumolib.data.manifest import read_manifest
from pneumolib.errors import DataError, ParamsError, ResultError
from pneumolib.params import DataParams, RunParams
from pneumolib.provenance import text_digest
from pneumolib.reporting.results import RESULT_FILE, complete, read_result
from pneumolib.study.inputs import declared_parameters, differences, gather, notebook_path


@dataclass(frozen=True)
class Step:
    """One run of a study and whether it is due.

    Attributes:
        run: its name.
        path: its parameter file.
        params: checked parameters.
        inputs: what it would be made from now.
        upstream: runs whose results it builds on.
        reasons: why it is due, in words; empty when it is up to date.
        forced: a training begins anew, whatever is kept of an earlier one.
    """

    run: str
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
    def folder(self) -> Path:
        """The folder of the finished run."""
        return project.run_folder(self.study, self.run)

    @property
    def previous(self) -> Path:
        """Where an out-of-date result waits until the new one has succeeded."""
        return self.folder.parent / ".previous" / self.run

    @property
    def training(self) -> Path:
        """Where a training keeps its checkpoints, a finished one too; see `Session.training_folder`.

        Not hidden: whether Kaggle keeps folders whose names begin with a dot in a notebook's output is not documented.
        """
        return self.folder.parent / "trainings" / self.run

    def lock(self) -> FileLock:
        """Held by the one process that may write this run's folders."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.parent / f".{self.run}.lock")

    @property
    def page(self) -> Path:
        return project.in_root(f"reports/{self.study}/{self.run}.html")


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

    @functools.cache
    def fingerprint(source: DataParams, place: str = "") -> str:
        try:
            return read_manifest(source).fingerprint
        except DataError as fault:  # a reader of files knows no study, and no other `data.root` than its own
            raise DataError(place + str(fault).replace("<study>", study_dir.name)) from None

    steps: list[Step] = []
    runs = project.study_runs(study_dir)
    loaded = _load_all(runs, data_root, smoke)
    for run, path in runs.items():
        params = of_run(run, loaded[project.evaluated(run)])
        data = fingerprint(params.data)
        if project.notebook_of(run) == project.EXTERNAL:
            data += "+" + fingerprint(params.external.data, f"{path}: external: ")
        upstream = upstream_of(run, params, [step.run for step in steps])
        inputs = gather(run, params, data, upstream_digests(params.study, upstream))
        step = Step(run, path, params, inputs, upstream, forced=force)
        again = [f"{other.run} is due" for other in steps if other.run in upstream and other.reasons]
        steps.append(replace(step, reasons=["FORCE=1"] if force else again or _reasons(step)))
    return steps


def of_run(run: str, params: RunParams) -> RunParams:
    """A file's parameters as a run of the study takes them: an evaluation is told which training it tests."""
    if project.notebook_of(run) != project.EVALUATION:
        return params
    return params.model_copy(update={"evaluates": project.evaluated(run)})


def _load_all(runs: dict[str, Path], data_root: str | None, smoke: bool) -> dict[str, RunParams]:
    """Parameters of each run but evaluations; a training's file may also set what the evaluation after it declares."""
    loaded, faults = {}, []
    for run, path in runs.items():
        if project.notebook_of(run) == project.EVALUATION:
            continue
        try:
            loaded[run], own = project.load_run(path, data_root, smoke, run)
            used = [other for other in runs if project.evaluated(other) == run]
            declared = {name: None for other in used for name in declared_parameters(notebook_path(other))}
            declared.pop("evaluates", None)
            if unused := sorted(own - declared.keys()):
                raise ParamsError(
                    f"{path}: {unused[0]}: notebook {project.notebook_of(run)} does not use it, so it would have no "
                    f"effect. It uses: {', '.join(declared)}"
                )
            _check_upstream(run, path, loaded[run], list(runs))
        except ParamsError as fault:
            faults += str(fault).replace(f"{project.project_root()}{os.sep}", "").splitlines()
    if faults:
        raise ParamsError("\n".join(dict.fromkeys(faults)))
    return loaded


def _check_upstream(run: str, path: Path, params: RunParams, runs: list[str]) -> None:
    """Raise ParamsError where a fine-tuning or an external validation names no training run of the study."""
    keys = {project.FINE_TUNING: "fine_tuning.continues", project.EXTERNAL: "external.run"}
    key = keys.get(project.notebook_of(run))
    trained = [run for run in runs if run.startswith(project.TRAINING)]
    if key and (needed := project.evaluated(upstream_of(run, params, runs)[0])) not in trained:
        raise ParamsError(
            f"{path}: {key}: received {attrgetter(key)(params)!r}, so it builds on {needed}: the study has no training run "
            f"of that name. Name another run, or add {needed}.yaml without a sweep. Training runs: "
            f"{', '.join(trained) or 'none'}"
        )


def upstream_of(run: str, params: RunParams, runs: list[str]) -> list[str]:
    """The runs that `run` builds on; a comparison builds on the evaluations among `runs`.

    The evaluation of a fine-tuning shows the change on test, and so needs that of the run it continues.
    """
    notebook, trained = project.notebook_of(run), project.evaluated(run)
    if notebook == project.COMPARISON:
        return [other for other in runs if project.notebook_of(other) == project.EVALUATION]
    if notebook == project.EVALUATION:
        if project.notebook_of(trained) != project.FINE_TUNING:
            return [trained]
        return [trained, project.evaluation_of(project.continued_run(trained, params.fine_tuning.continues))]
    return {
        project.FINE_TUNING: [project.continued_run(run, params.fine_tuning.continues)],
        project.EXTERNAL: [project.evaluation_of(params.external.run)],
    }.get(notebook, [])


def _reasons(step: Step) -> list[str]:
    """Why the last result is not that of `step`, apart from the runs that it builds on."""
    restore_previous(step)
    try:
        result = read_result(step.folder)
        gone = [f"{name} is gone" for name in result.artefacts if not (step.folder / name).is_file()]
        found = differences(result.inputs, step.inputs) + gone
        # It, or the training that it tested, may have been brought back.
        if not found and project.notebook_of(step.run) == project.EVALUATION:
            complete(project.run_folder(step.study, project.evaluated(step.run)), step.folder)
        return found
    except ResultError as fault:
        return [str(fault).splitlines()[0] if (step.folder / RESULT_FILE).exists() else "has not finished yet"]


def still_due(steps: list[Step], executed: list[Step]) -> list[str]:
    """Runs that are out of date once `executed` are done: due and not among them, or built on one and not run since."""
    done = [step.run for step in executed]
    return [s.run for s in steps if s.run not in done and (s.reasons or set(s.upstream) & set(done))]


def upstream_digests(study: str, runs: list[str]) -> dict[str, str]:
    """Run to hash of what names its execution: times, commit, versions and device; `none` where it has not finished.

    Not of all of `result.json`: an evaluation completes that of its training, which concerns no run that continues the
    training.
    """
    found = dict.fromkeys(runs, "none")
    for run in runs:
        with suppress(ResultError):
            found[run] = text_digest(read_result(project.run_folder(study, run)).provenance.model_dump_json())
    return found


def restore_previous(step: Step) -> None:
    """Bring back a result that was set aside, when a change that failed has been taken back: it is whole and right."""
    if step.folder.exists() or not (step.previous / RESULT_FILE).is_file():
        return
    # Not readable, or a process is at work on this run and will put its own result there.
    with suppress(ResultError, Timeout), step.lock().acquire(timeout=0):
        if not differences(read_result(step.previous).inputs, step.inputs) and not step.folder.exists():
            os.replace(step.previous, step.folder)
