"""A notebook's own door: its checked parameters, the folder it writes to, and the result it leaves.

Run by `pneumolib`, a notebook writes to the folder it is given; opened by a person, to `runs/interactive/<notebook>`,
never over a study's results.
"""

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from pneumolib.data.facts import TrainingReference
from pneumolib.data.manifest import Manifest, further_columns
from pneumolib.errors import ResultError
from pneumolib.evaluation.calibration import Calibration, Threshold
from pneumolib.params import RunParams, check
from pneumolib.project import continued_run, in_root, notebook_of, project_root
from pneumolib.provenance import file_sha256, package_versions, provenance_of_checkout, text_digest
from pneumolib.reporting import results
from pneumolib.reporting.comparing import read_prediction_table
from pneumolib.reporting.results import MODEL_FILE, PREDICTIONS_FILE, RESULT_FILE, Result, by_metric, plain, read_result

# Set by `study.run` for the kernel it starts.
RUN_VARIABLE, FOLDER_VARIABLE = "PNEUMOLIB_RUN", "PNEUMOLIB_FOLDER"
OPENINGS_FILE = "test_openings.csv"  # in `runs/`
_PARTS = {"val": "validation", "test": "test"}
FOLDERS = {"Figure": "figures", "Table": "tables"}  # in the folder of a run
_opened: list["Session"] = []  # the last one is this kernel's
_shown: dict[str, list[str]] = {kind: [] for kind in FOLDERS}


@dataclass(frozen=True)
class Continued:
    """The finished run that another one builds on: what it found, and where its files lie."""

    result: Result
    folder: Path

    @property
    def model_file(self) -> Path:
        """The trained network."""
        return self.folder / MODEL_FILE

    def predictions(self) -> pd.DataFrame:
        """Its `predictions.csv`."""
        return read_prediction_table(self.folder / PREDICTIONS_FILE)


@dataclass(frozen=True)
class Session:
    """One execution of a notebook.

    Attributes:
        notebook: its name without ending.
        run: the run's name; the notebook's when opened by a person.
        params: checked and frozen.
        folder: where this execution writes.
        interactive: opened by a person, not run by `pneumolib`.
        started: UTC.
        checkout: `commit` and `dirty` of the project when it started; None each where there is no checkout.
    """

    notebook: str
    run: str
    params: RunParams
    folder: Path
    interactive: bool
    started: datetime
    checkout: dict[str, Any]

    @property
    def training_folder(self) -> Path:
        """Where a training keeps its state from epoch to epoch; it outlives the run's own folder."""
        return self.folder.parent / "trainings" / self.run

    def continued(self, split: pd.DataFrame, device: dict) -> "Continued":
        """The run that `fine_tuning.continues` names, of the same variant; by hand, the one that was run by hand, if any.

        Args:
            split: of this run; the other one must have used the same, or its training images could be validated on.
            device: from `learning.start`; a network keeps the precision that it was trained in.
        Raises:
            ResultError: no such run has finished, or it saw other images or another split, or has another precision.
        """
        name = continued_run(self.run, self.params.fine_tuning.continues)
        found = _finished(self.params.study, name, self.interactive, split)
        folder, result = found.folder, found.result
        seen, asked = result.parameters["image"], self.params.image.model_dump()
        if seen != asked:
            raise ResultError(
                f"{folder}: was trained on images prepared otherwise: {seen}. Give this run the same `image` section; it "
                f"has {asked}"
            )
        here, was = device["precision"], result.provenance.device.get("precision")
        if here != was:
            raise ResultError(
                f"{folder}: was trained in {was} on {result.provenance.device.get('device')}, and this run computes in {here} on "
                f"{device['device']}: a network's layers keep their precision. Write training.precision in both, received "
                f"{self.params.training.precision} here"
            )
        return found

    def trained(self, split: pd.DataFrame) -> "Continued":
        """The training run that `evaluates` names; by hand, the one that was run by hand, if any.

        Args:
            split: of this run; the training must have used the same, or its training images could be tested on.
        Raises:
            ResultError: no such run has finished, or it saw another split.
        """
        return _finished(self.params.study, self.params.evaluates, self.interactive, split)

    def earlier(self, trained: "Continued") -> "Continued | None":
        """The evaluated run that a fine-tuning continued; None for another training, or where it was not evaluated."""
        name = trained.result.checks.get("continues")
        found = _finished(self.params.study, name, self.interactive) if name else None
        return found if found and found.result.metrics.get("test") else None

    def open_test(self, table: pd.DataFrame) -> dict[str, Any]:
        """Write down that a test set is opened, in `runs/test_openings.csv`, which only grows.

        Args:
            table: rows of a manifest's table; the images, their bytes and labels tell one test set from another.
        Returns:
            for `checks.test_openings` of the result: `before`, how often the same images were opened before, and `data`.
        """
        file, data = in_root("runs") / OPENINGS_FILE, table_fingerprint(table[["image_id", "sha256", "label"]])
        file.parent.mkdir(parents=True, exist_ok=True)
        before = sum(f",{data}," in line for line in file.read_text("utf-8").splitlines()) if file.is_file() else 0
        row = [f"{self.started:%Y-%m-%dT%H:%M:%SZ}", *self.checkout.values(), self.params.study, self.run, data, before]
        with file.open("a", encoding="utf-8") as opened:
            opened.write("" if opened.tell() else "started,commit,uncommitted_changes,study,run,data,before\n")
            opened.write(",".join(map(str, row)) + "\n")
        print(f"Test is opened. The same images were opened {before} time(s) before: runs/{OPENINGS_FILE}")
        return {"before": before, "data": data}

    def save(self, table: pd.DataFrame, name: str) -> None:
        """Write a table as CSV into the folder; floats keep every digit."""
        table.to_csv(self.folder / name, index=False, lineterminator="\n")

    def finish(
        self,
        manifest: Manifest,
        split: pd.DataFrame | None = None,
        threshold: Threshold | None = None,
        validation: pd.DataFrame | None = None,
        device: dict | None = None,
        facts: dict[str, Any] | None = None,
        checks: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
        ood: TrainingReference | None = None,
        external: Manifest | None = None,
    ) -> Result:
        """Write `result.json`, the last act of every notebook but the evaluation: see `finish_evaluation`.

        Args:
            manifest, split: the data used; their fingerprints are kept.
            threshold: frozen on validation.
            validation: a table of `evaluation.metric_table`.
            device: from `learning.start`.
            facts: figures of the run that are no metrics (epochs, parameters, ...).
            checks: findings about data and run, each a plain value or a table. With a split, the sizes of its parts
                are added as `split`.
            calibration: frozen on validation.
            ood: what the training images are like, of a run that leaves a network.
            external: another source that a frozen model was tried on.
        """
        model, sizes = self.folder / MODEL_FILE, {} if split is None else {"split": _part_sizes(split)}
        values = {
            "schema_version": 4,
            "synthetic": any(source.synthetic for source in (manifest, external) if source),
            "data": {
                **_source(manifest),
                "split_fingerprint": None if split is None else table_fingerprint(split),
                "external": external and _source(external),
            },
            "threshold": threshold and asdict(threshold),
            "calibration": calibration and asdict(calibration),
            "ood": ood and asdict(ood),
            "model_sha256": file_sha256(model) if model.is_file() else None,
            "metrics": {} if validation is None else {"validation": by_metric(validation)},
            "facts": facts or {},
            "checks": sizes | (checks or {}),
        }
        return self._write(values, device or {"device": "CPU", "cores": os.cpu_count()})

    def finish_evaluation(
        self,
        trained: Continued,
        test: pd.DataFrame,
        seeds: dict[str, pd.DataFrame],
        own: pd.DataFrame,
        device: dict,
        facts: dict[str, Any],
        checks: dict[str, Any],
    ) -> Result:
        """Write `result.json` of an evaluation: that of its training, with all that test has shown.

        In a study it completes the training's `result.json` and `predictions.csv`; by hand, those of a training by hand.

        Args:
            trained: from `trained`.
            test: table of `evaluation.metric_table`.
            seeds: `evaluation.seed_tables` of `val` and `test`; empty ones where the training was run from one seed.
            own: `evaluation.own_metrics`.
            device, facts, checks: see `finish`; facts and checks of the training stay.
        """
        values = trained.result.model_dump() | {
            "spread": {_PARTS[part]: by_metric(table) for part, table in seeds.items() if len(table)},
            "own_metrics": by_metric(own),
            "facts": trained.result.facts | facts,
            "checks": results.checks_of_training(trained.result) | checks,
        }
        values["metrics"]["test"] = by_metric(test)
        result = self._write(values, device)
        if self.interactive and trained.folder.parent == self.folder.parent:
            results.complete(trained.folder, self.folder)
        return result

    def _write(self, values: dict[str, Any], device: dict) -> Result:
        """Write the result of this run, made here and now."""
        finished = datetime.now(UTC)
        own = {
            "study": self.params.study,
            "run": self.run,
            "notebook": self.notebook,
            "parameters": self.params.model_dump(),
            "provenance": {
                **self.checkout,
                "started": self.started,
                "finished": finished,
                "seconds": round((finished - self.started).total_seconds(), 1),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "versions": package_versions(),
                "device": device,
            },
        }
        result = Result(**plain(values | own))
        results.write_result(result, self.folder)
        if self.interactive:
            print(f"Results are in {os.path.relpath(self.folder, project_root())}")
        return result


def _finished(study: str, name: str, interactive: bool, split: pd.DataFrame | None = None) -> Continued:
    """The finished run `name` of a study; by hand, the run of its notebook that was run by hand for this study, if any.

    Where `split` is given, the run must have used the same. Raises ResultError.
    """
    folder, by_hand = in_root(f"runs/{study}/{name}"), in_root("runs/interactive") / notebook_of(name)
    if interactive and (by_hand / RESULT_FILE).is_file() and read_result(by_hand).study == study:
        folder = by_hand
    if not (folder / RESULT_FILE).is_file():
        raise ResultError(
            f"{name} has not finished: looked for {folder / RESULT_FILE}. Run notebook {notebook_of(name)} first, or "
            f"`make report STUDY={study}`"
        )
    result = read_result(folder)
    if split is not None:
        print(f"Reads {os.path.relpath(folder, project_root())}")
        here, was = table_fingerprint(split), result.data.split_fingerprint  # ids, labels and patients of every image
        if here != was:
            raise ResultError(
                f"{folder}: was trained with another split ({was}, here {here}), so that its training images may be scored "
                f"here. Give both the same `data` and `split`, or run it again"
            )
    return Continued(result, folder)


def start(notebook: str, **values: Any) -> Session:
    """Check the parameters cell and open the folder this execution writes to.

    Args:
        notebook: the notebook's name, such as `03_baseline_cnn`.
        values: the names of the parameters cell: `study`, `seed`, `data`, `split`, `image`, ...
        For the evaluation, all others are those of the training run that `evaluates` names.
    Raises:
        ParamsError: before any data is touched; one line for each fault.
        ResultError: the training run that `evaluates` names has not finished.
    """
    params, run = check(values), os.environ.get(RUN_VARIABLE)
    if params.evaluates:
        params = check(_finished(params.study, params.evaluates, run is None).result.parameters | values)
    folder = Path(os.environ[FOLDER_VARIABLE]) if run else in_root(f"runs/interactive/{notebook}")
    folder.mkdir(parents=True, exist_ok=True)
    checkout = dict(zip(("commit", "dirty"), provenance_of_checkout(), strict=True))
    session = Session(notebook, run or notebook, params, folder, run is None, datetime.now(UTC), checkout)
    _opened[:] = [session]
    _shown.update({kind: [] for kind in FOLDERS})
    print(f"Study {params.study}, run {session.run}" + (" (opened by hand)" if session.interactive else ""))
    return session


def numbered(kind: str, name: str) -> tuple[str, Path | None]:
    """`Figure 3`, and the file of that name in the run's folder, without ending; outside a session no file.

    A name that comes again is another figure, and its file ends in `-2`. By hand it is a cell that runs again: number and
    file stay. An empty name is a number.

    Args:
        kind: `Figure` or `Table`. Both are counted from `start` on.
    """
    session, names = next(iter(_opened), None), _shown[kind]
    if not name or not session or not session.interactive or name not in names:
        names.append(name)
    number = len(names) if names.count(name) > 1 else names.index(name) + 1
    if session is None:
        return f"{kind} {number}", None
    again = f"-{names.count(name)}" if name and names.count(name) > 1 else ""
    folder = session.folder / FOLDERS[kind]
    folder.mkdir(exist_ok=True)
    return f"{kind} {number}", folder / (f"{name}{again}" or f"{kind.lower()}-{number}")


def table_fingerprint(table: pd.DataFrame) -> str:
    """16 hex digits of a table written as CSV."""
    return text_digest(table.to_csv(index=False))


def _source(manifest: Manifest) -> dict[str, Any]:
    return {
        "fingerprint": manifest.fingerprint,
        "images": len(manifest.table),
        "groups": manifest.table.group_id.nunique(),
        "left_out": int(manifest.problems.files.sum()),
        "columns": further_columns(manifest.table),
    }


def _part_sizes(split: pd.DataFrame) -> pd.DataFrame:
    """Columns `split, images, groups, pneumonia`, in the order train, val, test."""
    parts = split.groupby("split")
    sizes = parts.agg(images=("image_id", "size"), groups=("group_id", "nunique"), pneumonia=("label", "sum"))
    return sizes.reindex(["train", "val", "test"]).dropna().astype(int).reset_index()
