"""A study by Snakemake: the same results as by `make report`, killed and taken up again, and only what is due."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import REPO, TINY_BASELINE, TINY_TRAINING, Project

RUNS = [
    "01_quick", *(f"{kind}03_baseline_cnn-seed-{seed}" for seed in (1, 2) for kind in ("", "06_evaluation-")),
    "05_fine_tuning", "06_evaluation-05_fine_tuning", "07_comparison",
]  # fmt: skip


def tiny(root: Path) -> Project:
    """A sweep, and a fine-tuning that continues one run of it."""
    project = Project(root)
    project.write("params/tiny/03_baseline_cnn.yaml", TINY_BASELINE + "sweep: {seed: [1, 2]}\n")
    project.write(
        "params/tiny/05_fine_tuning.yaml", TINY_TRAINING + "fine_tuning: {continues: 03_baseline_cnn-seed-2}\n"
    )
    return project


def rules(project: Project) -> list[str]:
    text = (project.root / "build/snakemake/tiny/Snakefile").read_text(encoding="utf-8")
    return re.findall(r'^    name: "(.*)"', text, re.MULTILINE)


@pytest.mark.slow
def test_the_snakefile_holds_what_is_due_and_sets_older_results_aside(tmp_path):
    project = tiny(tmp_path)
    (tmp_path / "params/tiny/05_fine_tuning.yaml").unlink()
    (tmp_path / "params/tiny/03_baseline_cnn.yaml").unlink()
    project.run("report", "tiny")
    said = project.run("plan", "tiny", "--snakefile")
    assert rules(project) == []
    assert "01_quick: up to date" in said
    project.write(
        "params/tiny/study.yaml", (tmp_path / "params/tiny/study.yaml").read_text().replace("px: 32", "px: 48")
    )
    said = project.run("plan", "tiny")
    assert "01_quick: due, parameter image.size_px: 32 -> 48" in said
    assert (tmp_path / "runs/tiny/01_quick/result.json").is_file()  # to ask changes nothing
    said = project.run("plan", "tiny", "--snakefile")
    assert said.endswith(
        "Older results: runs/tiny/.previous. Run: snakemake --cores 2 -s build/snakemake/tiny/Snakefile\n"
    )
    assert rules(project) == ["01_quick"]
    assert not (tmp_path / "runs/tiny/01_quick").exists()
    project.write(
        "params/tiny/study.yaml", (tmp_path / "params/tiny/study.yaml").read_text().replace("px: 48", "px: 32")
    )
    assert "01_quick: up to date" in project.run("plan", "tiny")  # taken back, so it came back


@pytest.fixture(scope="module")
def snakemake(tmp_path_factory):
    """Snakemake as its lock has it, in an environment of its own; returns the words of a command."""
    folder = tmp_path_factory.mktemp("snakemake")
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
    install = [
        uv,
        "pip",
        "install",
        "-q",
        "--python",
        folder / "bin/python",
        "--require-hashes",
        "-r",
        REPO / "requirements.snakemake.lock",
    ]
    subprocess.run(install, check=True)
    return [str(folder / "bin/snakemake"), "--snakefile", "build/snakemake/tiny/Snakefile"]


@pytest.mark.hosts
def test_snakemake_gives_what_make_report_gives_also_when_it_was_killed(snakemake, tmp_path):
    """To the bit, by the executor of one machine, one job at a time."""
    project, other = tiny(tmp_path / "one"), tiny(tmp_path / "other")
    project.run("plan", "tiny", "--snakefile")
    assert rules(project) == RUNS
    options = {"cwd": project.root, "env": project.environment() | {"PYTHONPATH": str(REPO)}}
    with subprocess.Popen([*snakemake, "--cores", "2"], start_new_session=True, **options) as process:
        until = time.monotonic() + 120
        while not (project.root / "runs/tiny/.work-05_fine_tuning").exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    before = project.result("03_baseline_cnn-seed-2")
    subprocess.run([*snakemake, "--unlock"], check=True, **options)
    subprocess.run([*snakemake, "--cores", "2", "--rerun-incomplete"], check=True, **options)
    assert (
        project.result("03_baseline_cnn-seed-2")["provenance"]["started"] == before["provenance"]["started"]
    )  # not again
    other.run("report", "tiny")
    for run in RUNS:
        found, wanted = ({k: r[k] for k in ("metrics", "threshold", "calibration", "checks", "artefacts")} | {"weights": r["facts"].get("weights_sha256")}
                         for r in (project.result(run), other.result(run)))  # fmt: skip
        assert found == wanted, run
    assert predictions(project.root) == predictions(other.root)
    assert "Nothing to run" in project.run("report", "tiny")
    assert (project.root / "reports/tiny/07_comparison.html").is_file()


def predictions(root: Path) -> dict[str, bytes]:
    files = [file for name in ("predictions", "split") for file in root.glob(f"runs/tiny/[0-9]*/{name}.csv")]
    assert len(files) == 9
    return {str(file.relative_to(root)): file.read_bytes() for file in files}
