"""Where is what? The project's folders, the names of its runs, and the parameter files of its studies.

A study is a folder `params/<study>/`: `study.yaml` holds what all runs share (data, split, image, seed), and each
`NN_<notebook>[-<variant>].yaml` adds what one run needs. A `sweep` in such a file makes one run of each combination of values.
Numbers are read as in YAML 1.2: `1e-4` is a number; `010` and `1:30` are text, where YAML 1.1 reads 8 and 90.
"""

import itertools
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import yaml

from pneumolib.errors import InputError, ParamsError
from pneumolib.params import RunParams, check

SMOKE = "-smoke"  # ends the name of a study that is run small, see `smoke_params`
# Notebooks that train. Each run of them is followed by one of EVALUATION; a comparison is built on all of those.
TRAINING = ("03_baseline_cnn", "04_transfer_learning", "05_fine_tuning")
FINE_TUNING, EVALUATION = "05_fine_tuning", "06_evaluation"
COMPARISON, EXTERNAL = "07_comparison", "08_external_validation"
MOST_SWEPT = 200  # runs of one sweep
# Sections in which all runs of a study must agree, or they cannot be compared.
_NOT_SWEPT = ("study", "data", "split", "evaluation", "published", "external")


def project_root() -> Path:
    """The folder that `params/`, `data/`, `runs/` and `reports/` lie in.

    `PNEUMOLIB_ROOT` when set; else the nearest folder from here upwards that holds `notebooks/` and `params/`, so
    that a notebook finds it from `notebooks/` as from the root; else the working directory.
    """
    if named := os.environ.get("PNEUMOLIB_ROOT"):
        if not (root := Path(os.path.expanduser(named)).resolve()).is_dir():
            raise InputError(f"PNEUMOLIB_ROOT: received {named!r}; name a folder that is there, or unset it")
        return root
    here = Path.cwd()
    return next((p for p in [here, *here.parents] if (p / "notebooks").is_dir() and (p / "params").is_dir()), here)


def in_root(path: str | Path) -> Path:
    """`path`, taken from the project's root when relative; `~` is a person's home."""
    return Path(os.path.normpath(project_root() / os.path.expanduser(path)))


@contextmanager
def whole_file(file: Path, mark: str = "") -> Iterator[Path]:
    """A file beside `file` to write to. It takes its place at the end; when anything was raised, nothing is left of it.

    Its name has `mark`, by default the process's number, and `.tmp` before the ending, which Keras looks at. Folders are made.
    A disk's refusal names the file.
    """
    temporary = file.with_name(f"{file.stem}.{mark or os.getpid()}.tmp{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, file)
    except OSError as fault:
        if fault.errno and not fault.filename:  # of a write, no name is known
            fault.filename = str(file)
        raise
    finally:
        with suppress(OSError):  # it is gone, or was never there
            temporary.unlink()


def write_whole(file: Path, text: str) -> None:
    """Write a file that is never seen half written, and its folder where that is missing."""
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def params_folder(study: str) -> Path:
    """Where a study's parameter files lie; those of a study run small are the study's own."""
    return in_root(f"params/{study.removesuffix(SMOKE)}")


def report_command(study: str) -> str:
    """What a person types to run a study: `make report STUDY=coursework SMOKE=1`."""
    return f"make report STUDY={study.removesuffix(SMOKE)}" + (" SMOKE=1" if study.endswith(SMOKE) else "")


def notebook_of(run: str) -> str:
    """The notebook's name that a run's name starts with: `05_fine_tuning-vgg19` runs `05_fine_tuning`."""
    match = re.fullmatch(r"(\d\d_[A-Za-z0-9_]+)(?:-[\w.-]+)?", run)
    if not match:
        raise ParamsError(f"{run}: a run is named NN_<notebook>[-<variant>], such as 03_baseline_cnn-wide")
    return match[1]


def _misnamed(path: Path) -> list[str]:
    """One fault where a study's folder or a parameter file has a name that paths, links or Kaggle do not take as it is."""
    if re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.-]*", path.name):
        return []
    plain = unicodedata.normalize("NFKD", path.name).encode("ascii", "ignore").decode()
    better, what = re.sub("[^A-Za-z0-9_.]+", "-", plain).strip("-._"), "file" if path.is_file() else "folder"
    allowed = "Allowed are the letters a to z, digits, -, _ and dots, a letter or digit first"
    return [f"{str(path)!r}: rename the {what} to {better or 'study-1'}. {allowed}"]


def run_folder(study: str, run: str) -> Path:
    """The folder of a finished run. What is there is whole."""
    return in_root(f"runs/{study}/{run}")


def evaluation_of(run: str) -> str:
    """The run that evaluates a training run: `06_evaluation-03_baseline_cnn`."""
    return f"{EVALUATION}-{run}"


def evaluated(run: str) -> str:
    """The training run that an evaluation tests."""
    return run.removeprefix(f"{EVALUATION}-")


def continued_run(run: str, continues: str) -> str:
    """The run that a fine-tuning continues: a whole name, or a notebook's, of which it is the run of the same variant.

    `05_fine_tuning-vgg19` with `04_transfer_learning` continues `04_transfer_learning-vgg19`.
    """
    return continues if "-" in continues else continues + run.removeprefix(FINE_TUNING)


def study_runs(study_dir: Path) -> dict[str, Path]:
    """Each run of a study and its parameter file, in the order in which they are executed.

    A training run is followed by its evaluation, which shares its parameter file, as all runs of a `sweep` do. Raises
    ParamsError for a study without files, and for a file that has the name of an evaluation.
    """
    files = sorted(p for p in study_dir.glob("*.yaml") if p.name != "study.yaml")
    if not files:
        found = ", ".join(sorted(p.parent.name for p in in_root("params").glob("*/study.yaml")))
        raise ParamsError(f"{study_dir}: no folder with NN_<notebook>.yaml. Studies found: {found or 'none'}")
    runs, faults = {}, _misnamed(Path(os.path.abspath(study_dir)))
    for file in files:
        faults += _misnamed(file)
        notebook = file.stem.partition("-")[0]
        if notebook == EVALUATION:
            faults.append(f"{file}: {EVALUATION} runs after every training run, with its parameters; delete this file")
        for run in swept(file):
            if run in runs:
                faults.append(f"{file}: {run} is a run of {runs[run].name}, too; rename one")
            runs[run] = file
            if notebook in TRAINING:
                runs[evaluation_of(run)] = file
    if faults:
        raise ParamsError("\n".join(faults))
    return runs


def swept(path: Path) -> dict[str, dict[str, Any]]:
    """Each run of a parameter file, and what its `sweep` sets there, dotted key to value: one run, and nothing, without.

    `sweep: {training.learning_rate: [3.0e-4, 1.0e-3], seed: [1, 2]}` in `03_baseline_cnn.yaml` makes four runs, the first of
    them `03_baseline_cnn-learning_rate-0.0003-seed-1`. A file that cannot be used counts as one run: `load_run` says why.
    """
    with suppress(ParamsError):
        return _combinations(path, _read_yaml(path).get("sweep"))
    return {path.stem: {}}


def _combinations(path: Path, sweep: Any) -> dict[str, dict[str, Any]]:
    if sweep is None:
        return {path.stem: {}}
    place = f"{path}: sweep: received {str(sweep)[:500]}"
    if notebook_of(path.stem) not in TRAINING or notebook_of(path.stem) == FINE_TUNING:
        raise ParamsError(f"{place}; only {' and '.join(n for n in TRAINING if n != FINE_TUNING)} are swept")
    lists = sweep if isinstance(sweep, dict) else {0: []}
    fit = [isinstance(k, str) and isinstance(v, list) and v and dict not in map(type, v) for k, v in lists.items()]
    if not fit or not all(fit):
        raise ParamsError(f"{place}; write keys with lists of values: {{training.learning_rate: [3.0e-4, 1.0e-3]}}")
    if agreed := [key for key in sweep if key.partition(".")[0] in _NOT_SWEPT]:
        raise ParamsError(f"{place}; {agreed[0]} must be the same in all runs of a study, or they cannot be compared")
    if (count := math.prod(map(len, sweep.values()))) > MOST_SWEPT:
        raise ParamsError(f"{place}; that makes {count} runs, and at most {MOST_SWEPT} are allowed. Take out values")
    names, runs = [key.rpartition(".")[2] for key in sweep], {}
    for values in itertools.product(*sweep.values()):
        words = "-".join(f"{name}-{value}" for name, value in zip(names, values, strict=True))
        run = f"{path.stem}-{re.sub('[^A-Za-z0-9_.]+', '-', words).strip('-')}"  # [0.2, 1.0] becomes 0.2-1.0
        runs[run] = dict(zip(sweep, values, strict=True))
    if len(runs) < count or len(max(runs, key=len)) > 190:  # files have 255 bytes, with what stands before and after
        raise ParamsError(f"{place}; two runs get one name, or one of more than 190 characters")
    return runs


def load_run(
    path: Path, data_root: str | None = None, smoke: bool = False, run: str = ""
) -> tuple[RunParams, set[str]]:
    """Read `params/<study>/<run>.yaml` over its `study.yaml`.

    Args:
        path: the run's file; `study.yaml` must lie beside it.
        data_root: replaces `data.root` (`make report DATA=...`); where the study names TFRecord files, a folder of images
            replaces `data.source` too.
        smoke: make it small, and a run of study `<study>-smoke` (`make report SMOKE=1`).
        run: which of the file's runs, where it has a `sweep`; by default that of the file's name.
    Returns:
        the checked parameters, and the top-level keys that the run's own file set.
    Raises:
        ParamsError: a file that is missing or not YAML, a key set in both files, a study that is named as a smoke run
            is, both `data_root` and `smoke`, or whatever `check` refuses.
    """
    if smoke and data_root is not None:
        raise ParamsError(f"DATA: received {data_root!r} together with SMOKE=1, which draws images; leave one out")
    if path.parent.name.endswith(SMOKE):
        raise ParamsError(f"{path.parent}: names that end with {SMOKE} are for runs with SMOKE=1; rename the folder")
    shared, own = _read_yaml(path.parent / "study.yaml"), _read_yaml(path)
    if twice := sorted(shared.keys() & own.keys()):
        raise ParamsError(f"{path}: {twice[0]}: set in study.yaml already, which decides it for all runs; delete one")
    runs = _combinations(path, own.pop("sweep", None))
    if (combination := runs.get(run or path.stem)) is None:
        raise ParamsError(f"{path}: sweep: {run or path.stem} is none of its runs: {', '.join(runs)}")
    changed = [key.partition(".")[0] for key in combination]
    origin = dict.fromkeys(shared, str(path.parent / "study.yaml")) | dict.fromkeys([*own, *changed], str(path))
    values = {"study": path.parent.name} | shared | own
    for key, value in combination.items():
        section, _, name = key.rpartition(".")
        beside, inner = own.get(section) if section else own, values.get(section)
        if isinstance(beside, dict) and name in beside:
            raise ParamsError(f"{path}: {key}: set beside the sweep, too; delete one")
        within = {section: {**(inner if isinstance(inner, dict) else {}), name: value}}
        values |= within if section else {key: value}
    if values["study"] != path.parent.name:
        raise ParamsError(f"{origin['study']}: study: received {values['study']!r}, its folder is {path.parent.name!r}")
    params = check(values, origin)
    if data_root is not None:
        data = {**values.get("data", {}), "root": data_root}
        if params.data.source == "tfrecord" and any(in_root(data_root).glob("*/*/")):  # images in class folders
            data["source"] = "kaggle_folder"
        params = check(values | {"data": data}, origin)
    return smoke_params(params) if smoke else params, {*own, *changed}


_MOST_ALIASES, _MOST_BYTES = 10, 100_000  # of a parameter file; the longest of ours has 40 lines and no alias
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is set twice, of which PyYAML keeps the last, and reads numbers as YAML 1.2 does.

    Refuses more than `_MOST_ALIASES`, too (`*name`): aliases of lists of aliases can stand for billions of values.
    """

    aliases = 0

    yaml_implicit_resolvers: ClassVar = {
        first: [entry for entry in entries if entry[0] not in (_INT, _FLOAT)]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent, index):
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > _MOST_ALIASES:
            raise ParamsError(f"line {self.line + 1}: more than {_MOST_ALIASES} aliases (*name); write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise ParamsError(f"line {key.start_mark.line + 1}: {key.value}: set twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(?:0|[1-9][\d_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"(?i)[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:e[-+]?\d+)?|\d[\d_]*e[-+]?\d+|\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml")))
        what = "a folder, no file" if path.is_dir() else "no such file"
        raise ParamsError(f"{path}: {what}. Beside it: {beside or 'none'}")
    if path.stat().st_size > _MOST_BYTES:
        raise ParamsError(f"{path}: {path.stat().st_size} bytes; a parameter file has at most {_MOST_BYTES}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    # Broad: PyYAML lets out whatever its tags, dates, numbers and nested lists run into (KeyError, RecursionError and so on).
    except Exception as fault:  # noqa: BLE001
        raise ParamsError(f"{path}: {fault or type(fault).__name__}") from None
    values = {} if values is None else values
    strange = [values] if not isinstance(values, dict) else [key for key in values if not isinstance(key, str)]
    if strange:
        raise ParamsError(f"{path}: expected `key: value` lines, received {type(strange[0]).__name__}")
    return values


def smoke_params(params: RunParams) -> RunParams:
    """`params` of a run, made small, as those of study `<study>-smoke`: does all of it run? Its figures mean nothing.

    Everything that decides which code runs stays as it is. Images have at most 128 pixels a side, as many as the study's
    networks need. Weights are neither fetched nor looked for: they are random. A backbone from a file, or of hundreds of
    layers, becomes MobileNetV2: a network is traced for each of its uses, in minutes where there are 780 layers.
    """
    values = params.model_dump()
    values["image"]["size_px"] = min(params.image.size_px, 128)
    # So many images that the split makes both classes everywhere.
    drawn = {"source": "synthetic", "root": "data/smoke", "n_images": 24}
    values |= {"study": params.study + SMOKE, "data": drawn}
    values["split"] = {"validation_fraction": 0.3, "ratio_tolerance_points": 25.0}
    if backbone := params.model.backbone:
        of_few_layers = backbone if backbone in ("VGG16", "VGG19") else "MobileNetV2"
        values["model"] |= {"backbone": of_few_layers, "weights": "none", "preprocess": None}
    values["features"]["views"] = min(params.features.views, 1)
    # A stand-in need not have a layer of that name, nor as many.
    unfreeze = params.fine_tuning.unfreeze
    values["fine_tuning"]["unfreeze"] = "all" if isinstance(unfreeze, str) else min(unfreeze, 10)
    batch_size = min(params.training.batch_size, 8)  # which the eight chips of a Kaggle TPU can share
    values["training"] |= {"epochs": 1, "batch_size": batch_size, "warmup_epochs": 0.0}
    values["audit"]["folds"] = 2
    if params.evaluation.threshold_rule == "binormal":
        values["evaluation"]["threshold_rule"] = "youden"  # one epoch need not bring the classes into their order
    values["evaluation"]["seeds"] = params.evaluation.seeds[:1]
    values["evaluation"]["threshold_views"] = min(params.evaluation.threshold_views, 1)
    values["evaluation"]["resamples"] = min(params.evaluation.resamples, 50)
    few, kinds = min(params.robustness.images, 4), params.robustness.corruptions[:2]
    values["robustness"] = {"images": few, "corruptions": kinds}
    second = drawn | {"root": "data/smoke-hospital-2", "hospital": 2}
    values["external"] |= {"data": second, "recalibration_fraction": 0.5}
    return check(values, "made small for SMOKE=1")
