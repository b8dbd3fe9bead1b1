"""A study on several machines: what is due as a Snakefile, of which Snakemake makes jobs here, of SLURM, or of a cloud.

Options are those of Snakemake 9. What is due is still decided by content, when the file is written and once more in each job.
"""

import os
import shlex
import sys
from pathlib import Path

from pneumolib.project import in_root, project_root, write_whole
from pneumolib.remote.bundle import rendered
from pneumolib.study.plan import Step
from pneumolib.study.run import set_aside


def write_snakefile(steps: list[Step], options: list[str]) -> Path:
    """Write `build/snakemake/<study>/Snakefile`, one rule for each run of `steps` that is due.

    Results that are out of date are set aside as before a run, because a folder that is there is finished for Snakemake. They come
    back when the change is taken back.

    Args:
        steps: of one study, from `plan.plan`.
        options: `--data` and `--smoke` as that plan had them, for the command of each job.
    Raises:
        PneumolibError: another process is at work on one of the runs.
    """
    due = [step for step in steps if step.reasons]
    for step in due:
        set_aside(step)

    def command(*words: str) -> str:
        text = shlex.join(["-m", "pneumolib", *words, *options])
        return "{PYTHON:q} " + text.replace("{", "{{").replace("}", "}}")

    def place(path: Path) -> str:
        return os.path.relpath(path, project_root())

    rules = [
        {"run": step.run, "folder": place(step.folder), "needs": [place(step.folder.with_name(run)) for run in step.upstream],
         "command": command("run", "--alone", place(step.path.with_name(f"{step.run}.yaml")))} for step in due
    ]  # fmt: skip
    file = in_root(f"build/snakemake/{steps[0].study}/Snakefile")
    values = {"study": steps[0].path.parent.name, "root": str(project_root()), "python": sys.executable, "due": rules}
    values["all"] = command("report", place(steps[0].path.parent))
    write_whole(file, rendered("snakefile", **values) + "\n")
    return file
