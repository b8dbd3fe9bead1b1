"""A study's files: `params/<study>/study.yaml` and one file a run, read and checked."""

from pathlib import Path
from typing import Any

import yaml

from pneumolib.params import SMOKE, ParamsError, RunParams, check
from pneumolib.smoke import smoke_params


def load_run(path: Path, data_root: str | None = None, smoke: bool = False) -> tuple[RunParams, set[str]]:
    """Read `params/<study>/<run>.yaml` over its `study.yaml`.

    Args:
        path: the run's file; `study.yaml` must lie beside it.
        data_root: replaces `data.root` (`make report DATA=...`).
        smoke: make it small, and a run of study `<study>-smoke` (`make report SMOKE=1`).
    Returns:
        the checked parameters, and the top-level keys that the run's own file set.
    Raises:
        ParamsError: a file that is missing or not YAML, a key set in both files, a study that is named as a smoke run
            is, both `data_root` and `smoke`, or whatever `check` refuses.
    """
    if smoke and data_root is not None:
        raise ParamsError(
            f"DATA: received {data_root!r} together with SMOKE=1, which draws its own images; leave one away"
        )
    if path.parent.name.endswith(SMOKE):
        raise ParamsError(
            f"{path.parent}: a study may not be named ...{SMOKE}; that is where `make report SMOKE=1` keeps its results. "
            f"Rename the folder"
        )
    params, own = _load(path, data_root)
    return smoke_params(params) if smoke else params, own


def _load(path: Path, data_root: str | None) -> tuple[RunParams, set[str]]:
    shared, own = _read_yaml(path.parent / "study.yaml"), _read_yaml(path)
    if twice := sorted(shared.keys() & own.keys()):
        raise ParamsError(
            f"{path}: {twice[0]}: set in study.yaml already, which decides it for all runs; delete one of the two"
        )
    origin = dict.fromkeys(shared, str(path.parent / "study.yaml")) | dict.fromkeys(own, str(path))
    values = {"study": path.parent.name} | shared | own
    if values["study"] != path.parent.name:
        raise ParamsError(
            f"{origin['study']}: study: received {values['study']!r}, but its folder says {path.parent.name!r}"
        )
    if data_root is not None:
        if not isinstance(values.setdefault("data", {}), dict):
            check(values, origin)
        values["data"] = {**values["data"], "root": data_root}
    return check(values, origin), set(own)


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys and says nothing; this one refuses."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ParamsError(f"line {key_node.start_mark.line + 1}: a key must be a plain word")
            if key_node.value in seen:
                raise ParamsError(f"line {key_node.start_mark.line + 1}: {key_node.value}: set twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ParamsError(
            f"{path}: no such file. " + (f"Beside it: {', '.join(beside)}" if beside else "Its folder is missing")
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, ParamsError) as fault:
        raise ParamsError(f"{path}: {fault}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: expected `key: value` lines, received {type(values).__name__}")
    return values
