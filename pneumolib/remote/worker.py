"""What a bundle's cells call on the borrowed machine: put the project in place, run the study, keep what was reached.

The study runs through the same command as at home, in a process of its own. Such machines are taken away after some hours,
and Kaggle keeps nothing of a session that it had to end: so the study is ended in time, and goes on in the next session.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pneumolib.errors import ParamsError
from pneumolib.hosts import Prepared, prepare
from pneumolib.kept_runs import Keeper
from pneumolib.params import DataParams
from pneumolib.project import SMOKE, params_folder
from pneumolib.provenance import COMMIT_VARIABLE

OUTCOME = "outcome.json"
GRACE_S = 90.0  # from the interrupt, after which a run tidies up, to the end by force
ENDED_IN_TIME = 75  # beside the command line's own codes
_WORDS = {0: "finished", 1: "a run failed", 2: "stopped before any run", 130: "interrupted"}


@dataclass(frozen=True)
class Outcome:
    """How a study on a borrowed machine ended; lies in its output as `outcome.json`.

    Attributes:
        study: with `-smoke` where it was run small.
        commit: as in the bundle, `+changes` behind it where there were uncommitted ones.
        state: in words.
        code: of `pneumolib report`: 0 finished, 1 a run failed, 2 bad input; 75 ended in time, to go on next time.
        seconds: the study took here.
        headline: what each run has to show.
        stamp: of the bundle, so that a result is never taken for that of another.
    """

    study: str
    commit: str
    state: str
    code: int
    seconds: float
    headline: str
    stamp: str = ""


def settle(code: Path, commit: str) -> Prepared:
    """Prepare the machine and put notebooks and parameters of the unpacked bundle into the project's folder.

    Parameters and notebooks that an earlier session left there are replaced by the bundle's; results stay.

    Args:
        code: the folder that the bundle was unpacked to; the library is used from there.
        commit: what the bundle carries.
    """
    here = prepare(local_project=Path.cwd() / "pneumolib")
    os.environ[COMMIT_VARIABLE] = commit
    # For the processes to come; this one has it on its path.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    for part in ("notebooks", "params"):
        shutil.copytree(code / part, here.project / part, dirs_exist_ok=True)
    os.chdir(here.project)
    return here


def run_study(here: Prepared, study: str, smoke: bool = False, hours: float = 8.5, stamp: str = "") -> Outcome:
    """Run `pneumolib report STUDY` in the project, show what it says, and leave `outcome.json`.

    Args:
        here: from `settle`.
        study, smoke: as on the command line.
        hours: after so long the study is interrupted; what it has reached is kept.
        stamp: of the bundle.
    """
    from pneumolib.study.pages import study_headline

    began, keeper = time.monotonic(), Keeper(here.project)
    command = [sys.executable, "-u", "-m", "pneumolib", "report", study]
    command += ["--smoke"] if smoke else _data_option(here, study)
    code = _watch(command, here.project, keeper, began + 3600 * hours)
    keeper.pack(now=True)
    name = study + SMOKE if smoke else study
    state = _WORDS.get(code, f"ended with code {code}")
    if code == ENDED_IN_TIME:
        state = f"ended after {hours:g} hours, before the machine was taken away; the next session goes on from here"
    outcome = Outcome(name, os.environ.get(COMMIT_VARIABLE, ""), state, code, round(time.monotonic() - began, 1),
                      study_headline(name), stamp)  # fmt: skip
    (here.project / OUTCOME).write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
    if here.host == "kaggle":
        _leave_results_only(here.project)
    print(f"\nStudy {name}: {state}.\nIndex: {here.project / 'reports' / name / 'index.html'}\n{outcome.headline}")
    return outcome


def _watch(command: list[str], project: Path, keeper: Keeper, until: float) -> int:
    """Run a command, its lines shown as they come; returns its code, or `ENDED_IN_TIME` where it had to be interrupted."""
    late = False
    with subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        shown = threading.Thread(target=_show, args=(process,), daemon=True)
        shown.start()
        while process.poll() is None:
            try:
                keeper.pack()
            except OSError as fault:  # a full disk, say: the study goes on, and its clock with it
                print(
                    f"Warning: {keeper.project / 'runs'} could not be packed for the next session: {fault}", flush=True
                )
            if time.monotonic() > until + GRACE_S:
                process.kill()
            elif time.monotonic() > until and not late:
                late = True
                process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        shown.join(timeout=10)
    return ENDED_IN_TIME if late and process.returncode else process.returncode


def _show(process: subprocess.Popen) -> None:
    for line in process.stdout:
        print(line, end="", flush=True)


def _data_option(here: Prepared, study: str) -> list[str]:
    """`--data` for a study of an archive's folder: the one found whose path names the study's own, else the first."""
    import yaml

    file = params_folder(study) / "study.yaml"
    try:
        data = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("data") or {}
    except (OSError, yaml.YAMLError) as fault:
        raise ParamsError(f"{file}: {fault}") from None
    if data.get("source", DataParams().source) != "kaggle_folder" or not here.radiographs:
        return []
    wanted = Path(data.get("root", DataParams().root)).name
    return ["--data", str(min(here.radiographs, key=lambda folder: wanted not in folder.parts))]


def _leave_results_only(project: Path) -> None:
    """Kaggle keeps what lies in the working folder: not the images, drawn or attached, and not what was made of them."""
    for part in (".cache", "data"):  # of a link in it, the link alone
        shutil.rmtree(project / part, ignore_errors=True)
