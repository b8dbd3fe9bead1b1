"""The command line: `pneumolib COMMAND`. The Makefile's targets are thin covers of these commands.

Modules are imported inside the commands, so that `--help` is instant and TensorFlow is loaded by a training only.
"""

import gc
import io
import json
import os
import re
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click

from pneumolib.errors import InputError, ParamsError, PneumolibError, disk_words
from pneumolib.hosts import DATASET, processes
from pneumolib.project import evaluated, in_root
from pneumolib.text import printable


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="pneumolib")
def cli():
    """Pneumonia or normal, on children's chest radiographs: from parameter files to pages."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 it failed, 2 bad input, 130 interrupted."""
    # Modules of half a million objects are imported, and collecting garbage between takes longer.
    gc.set_threshold(100_000)
    # `~`, as a shell reads it, also in words that make or a program passes on.
    home, words = os.path.expanduser("~"), sys.argv[1:] if argv is None else argv
    words = [re.sub("^(--[a-z]+=|)~(?=/|$)", lambda found: found[1] + home, word) for word in words]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return cli.main(words, "pneumolib", standalone_mode=False) or 0
    except click.ClickException as fault:
        fault.show(shown := io.StringIO())
        return _refused(shown.getvalue().rstrip(), fault.exit_code)
    except PneumolibError as fault:
        return _refused(str(fault), fault.exit_code)
    except click.Abort:  # click's word for KeyboardInterrupt
        print("\nInterrupted. What is finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except (OSError, RuntimeError) as fault:  # HDF5 says by a RuntimeError that the disk is full
        if not (said := disk_words(fault)):
            raise
        return _refused(said, 1)


def _refused(message: str, code: int) -> int:
    """Show a message of ours, whose newlines are its own; what it quotes from data or arguments cannot move the cursor."""
    print(printable(message, "\n"), file=sys.stderr)
    return code


_data = click.option("--data", metavar="DIR", help="Read the radiographs from DIR instead of data.root.")
_verbose = click.option("-v", "--verbose", is_flag=True, help="Show each cell and what it prints, as run.log does.")
_smoke = click.option("--smoke", is_flag=True, help="Few drawn images, one epoch: does all of it run?")
_machines = click.Choice(["tpu", "gpu", "none"])
_accelerator = click.option("--accelerator", type=_machines, default="tpu", show_default=True)
_hours_range = click.FloatRange(0, 200)
_hours = click.option("--hours", type=_hours_range, help="End the study after so long; the next session goes on.")
_any_model = click.option("--force", is_flag=True, help="Take a model file that is not the one the run recorded.")


@cli.command()
@click.argument("study")
@_data
@_smoke
@click.option("--force", is_flag=True, help="Run everything, up to date or not, and train anew.")
@_verbose
def report(study: str, data: str | None, smoke: bool, force: bool, verbose: bool) -> int:
    """Run what is due of STUDY (its name or folder), in order, and write its pages."""
    if processes()[1] > 1:
        raise ParamsError("several processes train one network: pneumolib run params/<study>/<run>.yaml on each")
    steps = _planned(study, data, smoke, force)
    return _execute([step for step in steps if step.reasons], steps, verbose)


@cli.command("plan")
@click.argument("study")
@_data
@_smoke
@click.option("--snakefile", is_flag=True, help="Write them for Snakemake, and set their older results aside.")
def show_plan(study: str, data: str | None, smoke: bool, snakefile: bool) -> None:
    """Say which runs of STUDY are due, and why."""
    from pneumolib.remote.snakefile import write_snakefile

    steps = _planned(study, data, smoke)
    if snakefile:
        file = write_snakefile(steps, [*(["--data", data] if data else []), *(["--smoke"] if smoke else [])])
        print(f"\nOlder results: runs/{steps[0].study}/.previous. Run: snakemake --cores 2 -s {os.path.relpath(file)}")


def _planned(study: str, data: str | None, smoke: bool, force: bool = False) -> list:
    """All runs of a study, a line each that says whether it is due, and why."""
    from pneumolib.study.plan import plan

    steps = plan(Path(study).resolve() if "/" in study else in_root(f"params/{study}"), data, force, smoke)
    for step in steps:
        most = "; ".join(step.reasons[:3]) + "; ..." * (len(step.reasons) > 3)
        print(printable(f"{step.run}: {'due, ' + most if most else 'up to date'}"), flush=True)
    return steps


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data
@_smoke
@click.option("--force", is_flag=True, help="Train anew, whatever is kept of an earlier training.")
@click.option("--alone", is_flag=True, help="Of a training, do not run its evaluation.")
@_verbose
def run(file: Path, data: str | None, smoke: bool, force: bool, alone: bool, verbose: bool) -> int:
    """Run one parameter FILE, params/<study>/<run>.yaml, due or not; after a training its evaluation."""
    from pneumolib.study.plan import plan

    steps = plan(file.resolve().parent, data, smoke=smoke)
    # An evaluation shares the file. Where several processes train, `report` evaluates in one of them afterwards.
    last = 1 if processes()[1] > 1 else None
    named = [step for step in steps if file.stem in (step.path.stem, step.run, evaluated(step.run))]
    named = [step for step in named if step.run == file.stem or not alone]
    chosen = [replace(step, forced=force) for step in named][:last]
    if not chosen:
        raise ParamsError(f"{file}: no such run. Runs of the study: {', '.join(s.run for s in steps)}")
    late = {step.run: step.reasons[0] for step in steps if step.reasons and step.run not in [c.run for c in chosen]}
    for step in chosen:
        for run in [run for run in step.upstream if run in late]:
            raise ParamsError(f"{step.run} builds on {run}, which is due: {late[run]}. Run that first, or make report")
    return _execute(chosen, steps, verbose)


def _execute(due: list, steps: list, verbose: bool) -> int:
    """Run what is due, with a line for the result of each, then print a table of all runs and where the index is."""
    from pneumolib.study import pages
    from pneumolib.study.plan import still_due

    began, first = time.monotonic(), processes()[0] == 0
    if due:
        from pneumolib.study.run import execute

        # Results that were brought back by `plan` get their pages before a failure can end this.
        if first:
            pages.refresh(steps, waiting=still_due(steps, []))
        runs = [step.run for step in steps]
        for number, step in enumerate(due, 1):
            position = f"[{runs.index(step.run) + 1}/{len(steps)}]"
            started = time.monotonic()
            execute(step, position, still_due(steps, due[:number]), verbose)
            if first:
                found = {run: found for run, found, *_ in pages.summaries(step.study)}.get(evaluated(step.run), "done")
                took = pages.duration(time.monotonic() - started)
                print(printable(f"{position} {step.run}  {found}  {took}"), flush=True)
    if not first:  # of several processes, the first one writes pages
        return 0
    refreshed = pages.refresh(steps, waiting=still_due(steps, due))
    done = f"{len(due)} run(s) in {time.monotonic() - began:.0f} s" if due else "Nothing to run"
    table = [("run", "result", "duration", "page"), *pages.summaries(steps[0].study)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("", *(printable("  ".join(map(str.ljust, row, widths)).rstrip()) for row in table), sep="\n")
    print(f"\n{done}{f', {refreshed} page(s) written anew' if refreshed else ''}.")
    print(f"Index: reports/{steps[0].study}/index.html")
    return 0


@cli.command("open")
@click.argument("run")
@_data
@_smoke
@click.option("--no-browser", is_flag=True, help="Write the copy and print its path, open nothing.")
def open_run(run: str, data: str | None, smoke: bool, no_browser: bool) -> int:
    """Open a copy of the notebook of RUN (<study>/<run>) in JupyterLab, with its parameters."""
    from pneumolib.study.run import open_copy

    study, _, name = run.partition("/")
    return open_copy(in_root(f"params/{study}/{name}.yaml"), data, browse=not no_browser, smoke=smoke)


@cli.command("data")
@click.option("--from", "source", default="tfrecord", show_default=True, help="tfrecord, kaggle, or a zip archive.")
@click.option("--address", help="Of TFRecord files: gs://..., https://... or a folder; of Kaggle: owner/name.")
@click.option("--to", default="data/chest_xray", metavar="DIR", show_default=True, help="Where to put them.")
def fetch(source: str, address: str | None, to: str) -> None:
    """Download the real radiographs into one folder."""
    from pneumolib.data.download import download

    download(source, address, to)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of result.json."""
    from pneumolib.reporting.results import result_schema

    print(json.dumps(result_schema(), indent=1))


@cli.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--csv", default="", metavar="FILE", help="Write a table; - for standard output.")
@click.option("--json", "as_json", default="", metavar="FILE", help="The same as JSON.")
@click.option("--cam", default="", metavar="DIR", help="Write Grad-CAM overlays as PNG.")
@_any_model
def predict(run: str, images: tuple[str, ...], csv: str, as_json: str, cam: str, force: bool) -> int:
    """Classify image files with the model of RUN: <study>/<run>, or a run's folder.

    IMAGE is a JPEG, PNG or DICOM file, a folder, or a quoted pattern such as 'images/**'.
    """
    from pneumolib.serve.predict import predict_files

    return predict_files(run, list(images), csv, as_json, cam, force)


@cli.command()
@click.argument("run")
@click.option("--format", "form", required=True, metavar="FORMAT", help="savedmodel, litert, onnx or json.")
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", help="The folder to make [export/FORMAT].")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in that folder.")
@_any_model
def export(run: str, form: str, to: Path | None, overwrite: bool, force: bool) -> None:
    """Write the model of RUN for other programs, checked against Keras."""
    from pneumolib.serve.export import export_run

    export_run(run, form, to, overwrite, force)


@cli.command()
@click.argument("run", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="Of the page.")
@click.option("--browse", is_flag=True, help="Open it in a browser.")
def app(run: str | None, port: int, browse: bool) -> None:
    """Show the model of RUN (default: the last one) on a page, on this machine alone."""
    if find_spec("streamlit") is None:
        raise InputError('The page needs Streamlit, which is not installed: pip install "pneumolib[app]"')
    from pneumolib.serve.app import serve

    serve(run, port, browse)


@cli.command("kaggle")
@click.argument("study")
@_accelerator
@_hours
@_smoke
@click.option("--push", is_flag=True, help="Push, wait and fetch, with Kaggle's client and your account.")
@click.option("--resume", default="", metavar="NOTEBOOK", help="Go on from its output: owner/name; 1: the same one.")
@click.option("--dataset", default=DATASET, metavar="OWNER/NAME", help="The radiographs, where not the archive's.")
def on_kaggle(study, accelerator, hours, smoke, push, resume, dataset) -> int:
    """Build one notebook that carries STUDY; --push runs it on Kaggle."""
    from pneumolib.remote import kaggle
    from pneumolib.remote.bundle import build

    hours = hours or kaggle.HOURS[accelerator]
    bundle = build(study, "kaggle", smoke, hours)
    metadata = kaggle.write_metadata(bundle, accelerator, resume, dataset, os.environ.get("KAGGLE_USERNAME", ""))
    print(f"Built {os.path.relpath(bundle.notebook)} and {metadata.name}, commit {bundle.commit}")
    if push:
        return 0 if kaggle.push(bundle, hours)["code"] == 0 else 1
    print(f"Run it: make kaggle STUDY={study} PUSH=1, or upload the notebook on kaggle.com")
    return 0


@cli.command("colab")
@click.argument("study")
@_accelerator
@_hours
@_smoke
@click.option("--schedule", is_flag=True, help="Those that run it every week on Google Cloud.")
def on_colab(study, accelerator, hours, smoke, schedule) -> None:
    """Build the notebook that carries STUDY and print the commands that run it on Colab."""
    from pneumolib.remote.bundle import build
    from pneumolib.remote.kaggle import COLAB_HOURS, colab_commands

    hours = hours or COLAB_HOURS
    bundle = build(study, "colab", smoke, hours)
    print(f"# {os.path.relpath(bundle.notebook)}, commit {bundle.commit}")
    print(colab_commands(bundle, accelerator, hours, schedule))


if __name__ == "__main__":
    sys.exit(main())
