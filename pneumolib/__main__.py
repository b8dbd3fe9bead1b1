"""The command line: `pneumolib report|run|open|predict|export|app|data|kaggle|colab|schema`. The Makefile's targets are thin covers of these."""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from pneumolib.errors import InputError, PneumolibError
from pneumolib.hosts import processes
from pneumolib.params import ParamsError, in_root


def main(argv: list[str] | None = None) -> int:
    """Parse and run one command; returns the exit code: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(argv)
    # Imported here, so that `--help` is instant. Errors of these types carry a message for people.
    from pneumolib.data.manifest import ManifestError

    try:
        return options.command(options)
    except (ParamsError, ManifestError, InputError) as fault:
        print(f"Stopped before any run:\n{fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished runs are kept; `make report` goes on from there.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pneumolib", description="Runs studies: parameter files to pages.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="run what is due of a study, in order, and write its pages")
    report.add_argument("study", help="a study's name, or its folder params/<study>")
    report.set_defaults(command=_report)
    run = commands.add_parser("run", help="run one parameter file, due or not")
    run.add_argument("file", type=Path, help="params/<study>/<run>.yaml")
    run.set_defaults(command=_run)
    opener = commands.add_parser("open", help="open a copy of a run's notebook in JupyterLab, its parameters injected")
    opener.add_argument("run", help="<study>/<run>, such as kermany/03_baseline_cnn")
    opener.add_argument("--no-browser", action="store_true", help="write the copy and print its path, open nothing")
    opener.set_defaults(command=_open)
    app = commands.add_parser("app", help="show a trained model on a page, on this machine alone")
    app.add_argument("run", nargs="?", help="<study>/<run> or a run's folder, to begin with (default: the last one)")
    app.add_argument("--port", type=int, default=8501, help="of the page (%(default)s)")
    app.add_argument("--browse", action="store_true", help="open it in a browser")
    app.set_defaults(command=_app)
    data = commands.add_parser("data", help="fetch the real radiographs into one folder")
    data.add_argument("--from", dest="source", default="tfrecord", help="tfrecord (default), kaggle, or a zip archive")
    data.add_argument("--address", help="of TFRecord files: gs://..., https://... or a folder; of Kaggle: owner/name")
    data.add_argument("--to", default="data/chest_xray", metavar="DIR", help="where to put them (%(default)s)")
    data.set_defaults(command=_data)
    _add_predict(commands)
    _add_export(commands)
    _add_remote(commands)
    schema = commands.add_parser("schema", help="print the JSON Schema of result.json")
    schema.set_defaults(command=_schema)
    for command in (report, run, opener):
        command.add_argument("--data", metavar="DIR", help="read the radiographs from DIR instead of data.root")
        command.add_argument("--smoke", action="store_true", help="few drawn images, one epoch: does all of it run?")
    report.add_argument("--force", action="store_true", help="run everything, up to date or not, and train anew")
    run.add_argument("--force", action="store_true", help="train anew, whatever is kept of an earlier training")
    return parser


def _add_predict(commands: argparse._SubParsersAction) -> None:
    predict = commands.add_parser("predict", help="say what a trained model makes of image files")
    predict.add_argument("run", help="a run's folder, or <study>/<run>, such as demo/03_baseline_cnn")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG and DICOM files, folders, 'patterns/**'")
    predict.add_argument("--csv", default="", metavar="FILE", help="write a table; - for standard output")
    predict.add_argument("--json", default="", metavar="FILE", help="the same as JSON")
    predict.add_argument("--cam", default="", metavar="DIR", help="write Grad-CAM overlays as PNG")
    predict.add_argument("--force", action="store_true", help="take a model file that is not the one the run recorded")
    predict.set_defaults(command=_predict)


def _add_remote(commands: argparse._SubParsersAction) -> None:
    kaggle = commands.add_parser("kaggle", help="build one notebook that carries a study; --push runs it on Kaggle")
    kaggle.add_argument(
        "--push", action="store_true", help="push, wait and fetch, with Kaggle's client and your account"
    )
    kaggle.add_argument(
        "--resume", default="", metavar="NOTEBOOK", help="go on from its output: owner/name; 1: the same one"
    )
    kaggle.add_argument(
        "--dataset", metavar="OWNER/NAME", help="the radiographs on Kaggle, where they are not the archive"
    )
    kaggle.set_defaults(command=_kaggle)
    colab = commands.add_parser("colab", help="build the same notebook and print the commands that run it on Colab")
    colab.add_argument("--schedule", action="store_true", help="those that run it every week on Google Cloud")
    colab.set_defaults(command=_colab)
    for command in (kaggle, colab):
        command.add_argument("study", help="a study's name")
        command.add_argument("--smoke", action="store_true", help="few drawn images, one epoch: does all of it run?")
        command.add_argument(
            "--accelerator", choices=("tpu", "gpu", "none"), default="tpu", help="default: %(default)s"
        )
        command.add_argument("--hours", type=float, help="end the study after so long; the next session goes on")


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="write a trained model for other programs, checked against Keras")
    export.add_argument("run", metavar="RUN", help="<study>/<run>, or a run's folder")
    export.add_argument("--format", required=True, metavar="FORMAT", help="savedmodel, litert, onnx or json")
    export.add_argument("--to", type=Path, metavar="DIR", help="the folder to make (export/FORMAT in the run's folder)")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    export.add_argument("--force", action="store_true", help="take a model file that is not the one the run recorded")
    export.set_defaults(command=_export)


def _report(options: argparse.Namespace) -> int:
    from pneumolib.reporting.study import plan

    if processes()[1] > 1:
        raise ParamsError(
            "several processes run one parameter file together: pneumolib run params/<study>/<run>.yaml on each"
        )
    steps = plan(_study_dir(options.study), options.data, options.force, options.smoke)
    due = [step for step in steps if step.reasons]
    for step in steps:
        print(f"{step.run}: {'due, ' + '; '.join(step.reasons) if step.reasons else 'up to date'}", flush=True)
    return _execute(due, len(steps), steps)


def _run(options: argparse.Namespace) -> int:
    from pneumolib.reporting.study import plan

    steps = plan(options.file.resolve().parent, options.data, smoke=options.smoke)
    chosen = [replace(step, forced=options.force) for step in steps if step.run == options.file.stem]
    if not chosen:
        raise ParamsError(f"{options.file}: no such file. Runs of the study: {', '.join(s.run for s in steps)}")
    for late in (s for s in steps if s.run in chosen[0].upstream and s.reasons):
        raise ParamsError(
            f"{chosen[0].run} builds on {late.run}, which is due: {late.reasons[0]}. Run that first, or make report"
        )
    return _execute(chosen, 1, steps)


def _execute(due: list, total: int, steps: list) -> int:
    """Run what is due, then say where the index is and what came out."""
    from pneumolib.reporting import indexes, pages
    from pneumolib.reporting.study import still_due

    began, first = time.monotonic(), processes()[0] == 0
    if due:
        from pneumolib.reporting.run import RunError, execute

        # Results that were brought back by `plan` get their pages before a failure can end this.
        if first:
            pages.refresh(steps, waiting=still_due(steps, []))
        for number, step in enumerate(due):
            position = f"[{steps.index(step) + 1}/{total}]" if total > 1 else ""
            try:
                execute(step, position, waiting=still_due(steps, due[: number + 1]))
            except RunError as fault:
                print(f"\n{fault}", file=sys.stderr)
                return 1
    if not first:  # of several processes, the first one writes pages
        return 0
    refreshed = pages.refresh(steps, waiting=still_due(steps, due))
    done = f"{len(due)} run(s) in {time.monotonic() - began:.0f} s" if due else "Nothing to run"
    print(f"\n{done}{f', {refreshed} page(s) written anew' if refreshed else ''}.")
    print(f"Index: {indexes.index_path(steps[0].study)}")
    print(f"Result: {indexes.study_headline(steps[0].study)}")
    return 0


def _open(options: argparse.Namespace) -> int:
    from pneumolib.reporting.interactive import open_copy

    study, _, run = options.run.partition("/")
    path = in_root(f"params/{study}/{run}.yaml")
    return open_copy(path, options.data, browse=not options.no_browser, smoke=options.smoke)


def _app(options: argparse.Namespace) -> int:
    from pneumolib.serving.app_server import AppError, serve
    from pneumolib.serving.trained import ModelError

    try:
        serve(options.run, options.port, options.browse)
    except (AppError, ModelError) as fault:
        print(f"{fault}", file=sys.stderr)
        return 2
    return 0


def _data(options: argparse.Namespace) -> int:
    from pneumolib.data.download import DownloadError, download

    try:
        download(options.source, options.address, options.to)
    except DownloadError as fault:
        print(f"\n{fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. What was fetched is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def _predict(options: argparse.Namespace) -> int:
    from pneumolib.serving.outputs import PredictError
    from pneumolib.serving.predict import predict
    from pneumolib.serving.trained import ModelError

    try:
        return predict(options.run, options.images, options.csv, options.json, options.cam, options.force)
    except (ModelError, PredictError) as fault:
        print(fault, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def _kaggle(options: argparse.Namespace) -> int:
    from pneumolib.hosts import DATASET
    from pneumolib.remote import kaggle
    from pneumolib.remote.bundle import build

    hours = options.hours or kaggle.HOURS[options.accelerator]
    try:
        bundle = build(options.study, "kaggle", options.smoke, hours)
        user = os.environ.get("KAGGLE_USERNAME", "")
        metadata = kaggle.write_metadata(bundle, options.accelerator, options.resume, options.dataset or DATASET, user)
        print(
            f"Built {os.path.relpath(bundle.notebook)} ({bundle.size_kb} kB) and {metadata.name}, commit {bundle.commit}"
        )
        if options.push:
            return 0 if kaggle.push(bundle, hours)["code"] == 0 else 1
    except PneumolibError as fault:
        print(f"\n{fault}", file=sys.stderr)
        return 1
    print(f"Run it: make kaggle STUDY={options.study} PUSH=1, or upload the notebook on kaggle.com")
    return 0


def _colab(options: argparse.Namespace) -> int:
    from pneumolib.remote import kaggle
    from pneumolib.remote.bundle import build

    hours = options.hours or kaggle.COLAB_HOURS
    try:
        bundle = build(options.study, "colab", options.smoke, hours)
    except PneumolibError as fault:
        print(f"\n{fault}", file=sys.stderr)
        return 1
    print(f"# {os.path.relpath(bundle.notebook)} ({bundle.size_kb} kB), commit {bundle.commit}")
    commands = kaggle.colab_commands(bundle, options.accelerator, hours)
    print("\n".join(kaggle.colab_schedule(bundle, hours) if options.schedule else commands))
    return 0


def _export(options: argparse.Namespace) -> int:
    from pneumolib.serving.export import ExportError, RefusedError, export_run
    from pneumolib.serving.trained import ModelError

    # Exporters need TensorFlow, whatever the network was trained on, and are checked on a CPU, as a GPU rounds otherwise.
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        export_run(options.run, options.format, options.to, options.overwrite, options.force)
    except (ModelError, RefusedError) as fault:
        print(fault, file=sys.stderr)
        return 2
    except ExportError as fault:
        print(f"\n{fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was exported.", file=sys.stderr)
        return 130
    return 0


def _schema(_: argparse.Namespace) -> int:
    from pneumolib.reporting.results import result_schema

    print(json.dumps(result_schema(), indent=1))
    return 0


def _study_dir(study: str) -> Path:
    return Path(study).resolve() if "/" in study else in_root(f"params/{study}")


if __name__ == "__main__":
    sys.exit(main())
