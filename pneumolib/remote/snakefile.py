"""A study on several machines: what is due as a Snakefile, of which Snakemake makes jobs here, of SLURM, or of a cloud.

Options are those of Snakemake 9. What is due is still decided by content, when the file is written.
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
    """
    due = [step for step in steps if step.reasons]
    for step in due:
        set_aside(step)

    def command(*words: str) -> str:
        text = shlex.join(["-m", "pneumolib", *words, *options])
        return "{PYTHON:q} " + text.replace("{", "{{").replace("}", "}}")

    study, params = steps[0].study, os.path.relpath(steps[0].path.parent, project_root())
    file = in_root(f"build/snakemake/{study}/Snakefile")
    values = {"study": study, "params": params, "root": str(project_root()), "python": sys.executable}
    write_whole(file, rendered("snakefile", **values, due=due, command=command) + "\n")
    return file
