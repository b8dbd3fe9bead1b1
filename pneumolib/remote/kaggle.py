"""A bundle on Kaggle: its metadata, and by the official client the push, the wait and the results. On Colab: the commands to type.

Kaggle's client is called as a program and reads the credentials itself (`KAGGLE_API_TOKEN`, `KAGGLE_USERNAME` and `KAGGLE_KEY`,
or the files in `~/.kaggle`); nothing of them is read or printed here. Options and words are those of its version 2.2.4. A push
that Kaggle refuses ends with code 0, so its words are looked at, not its code.

Options of `colab` are those of google-colab-cli 0.7.5, by its own help; those of `gcloud colab schedules create` were read in
its reference. No account was at hand to run either.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pneumolib.errors import PneumolibError
from pneumolib.project import write_whole
from pneumolib.remote.bundle import OUTCOME, Bundle, rendered

# Kaggle ends a session after nine hours on a TPU and after twelve elsewhere, and keeps nothing of it then.
HOURS = {"tpu": 8.5, "gpu": 11.5, "none": 11.5}
COLAB_HOURS = 11.5  # a session ends after twelve, or earlier
NOBODY = "your-kaggle-name"
STATUS = re.compile(r'status "(?:KernelWorkerStatus\.)?(\w+)"', re.IGNORECASE)


def write_metadata(bundle: Bundle, accelerator: str, resume: str, dataset: str, user: str) -> Path:
    """Write `kernel-metadata.json` beside the notebook.

    Args:
        bundle: from `bundle.build`.
        accelerator: `tpu` (v5e-8), `gpu` (two T4) or `none`.
        resume: `owner/notebook` whose output the session goes on from; `1` for this notebook's own last one.
        dataset: the radiographs, `owner/name`; attached to studies that read the archive's folder.
        user: the account; a placeholder where it is empty.
    """
    asked = {"accelerator": accelerator, "resume": resume, "dataset": dataset, "user": user or NOBODY}
    file = bundle.notebook.with_name("kernel-metadata.json")
    write_whole(file, rendered("kernel-metadata.json", bundle=bundle, **asked) + "\n")
    return file


def push(bundle: Bundle, hours: float, pause_s: float = 60.0) -> dict:
    """Push the bundle, wait until its session has ended, and fetch what it left into `output/` beside the notebook.

    Args:
        bundle: with its metadata written.
        hours: the study's own limit; waited for is as long again for the queue, at most a day.
        pause_s: between two looks.
    Returns:
        the outcome, as in `outcome.json`.
    Raises:
        PneumolibError: no client, refused, failed, cancelled, not ended in time, or an output without an outcome; the
            message says what Kaggle's client said and what to do.
    """
    folder = bundle.notebook.parent
    name = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))["id"]
    if name.startswith(NOBODY):
        raise PneumolibError("KAGGLE_USERNAME is not set: the notebook's address begins with it, even with a token")
    said = _client("kernels", "push", "-p", str(folder))
    print(said.strip(), flush=True)
    # Unknown sources are left out and the session starts all the same. Of runs to go on from there may be none yet.
    if "successfully pushed" not in said or "not valid dataset sources" in said:
        raise PneumolibError(f"Kaggle did not take {bundle.notebook.name} as it is, see above. If it runs, stop it")
    _wait(name, time.monotonic() + 3600 * min(2 * hours, 24), pause_s)
    return _fetch(name, bundle)


def _wait(name: str, until: float, pause_s: float) -> None:
    """Look every `pause_s` seconds, print what changes, return when the session is complete."""
    last = ""
    while last != "COMPLETE":
        try:
            said = _client("kernels", "status", name)
        except PneumolibError as fault:  # of the network, say
            said = f"no answer ({str(fault).splitlines()[-1]})"
        status = match[1].upper() if (match := STATUS.search(said)) else said.strip()
        if status != last:
            print(f"{time.strftime('%H:%M')}  {name}: {status}", flush=True)
            last = status
        if status == "ERROR" or status.startswith("CANCEL"):
            raise PneumolibError(
                f"{name}: the session ended with {status}; what it said is at https://www.kaggle.com/code/{name}\n{said}"
            )
        if status != "COMPLETE" and time.monotonic() > until:
            raise PneumolibError(
                f"{name}: still {status}, and not waited for any longer. It goes on there; later: "
                f"kaggle kernels output {name} -p <folder>"
            )
        time.sleep(pause_s)


def _fetch(name: str, bundle: Bundle) -> dict:
    """Fetch into a new folder that then replaces the last one: no page of an older session stays among the new ones."""
    output = bundle.notebook.with_name("output")
    fresh = output.with_name(".output")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    _client("kernels", "output", name, "-p", str(fresh), "--force", "--quiet")
    found = next(iter(sorted(fresh.rglob(OUTCOME))), None)
    if found is None:
        raise PneumolibError(f"{name}: its output holds no {OUTCOME}; what there is lies in {fresh}")
    outcome = json.loads(found.read_text(encoding="utf-8"))
    if outcome.get("stamp") != bundle.stamp:
        raise PneumolibError(
            f"{name}: the output is that of another bundle (commit {outcome.get('commit')}), not of the one just pushed; it "
            f"lies in {fresh}"
        )
    shutil.rmtree(output, ignore_errors=True)
    fresh.rename(output)
    index = output / found.parent.relative_to(fresh) / "reports" / outcome["study"] / "index.html"
    print(f"Study {outcome['study']}: {outcome['state']}\n{outcome['headline']}\nIndex: {index}", flush=True)
    return outcome


def _client(*words: str) -> str:
    """What Kaggle's client prints. Raises PneumolibError where there is none or it fails."""
    program = shutil.which("kaggle") or shutil.which(Path(sys.executable).with_name("kaggle"))
    if program is None:
        raise PneumolibError(
            "Kaggle's client is not installed: .venv/bin/pip install -r requirements.kaggle.lock, and KAGGLE_API_TOKEN with a "
            "token that kaggle.com/settings/api makes"
        )
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise PneumolibError(
            f"kaggle {' '.join(words[:2])} failed; is KAGGLE_API_TOKEN set (or the older KAGGLE_KEY), or has `kaggle auth login` "
            f"been done? It said:\n{said.strip()[-2000:]}"
        )
    return said


def colab_commands(bundle: Bundle, accelerator: str, hours: float, schedule: bool = False) -> str:
    """The commands for a session of one's own on Colab, or for a weekly `schedule` in Colab Enterprise, one a line."""
    notebook = shlex.quote(str(bundle.notebook))
    template, name = "schedule.sh" if schedule else "colab.sh", bundle.notebook.stem
    return rendered(template, name=name, notebook=notebook, accelerator=accelerator, hours=hours)
