"""What `make kaggle` and `make colab` build, and how Kaggle's client is led; a small program stands in for that client."""

import base64
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import nbformat
import pytest
import yaml

from conftest import REPO, Project
from pneumolib.errors import PneumolibError
from pneumolib.hosts import DATASET, Prepared
from pneumolib.remote import bundle as bundles
from pneumolib.remote import kaggle
from pneumolib.remote.bundle import Bundle

# Answers with the words of Kaggle's client, read in its version 2.2.4: a push that is refused ends with code 0.
CLIENT = """\
#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
script = json.loads((here / "script.json").read_text())
with (here / "calls.txt").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[2] == "push":
    print(script["push"])
elif sys.argv[2] == "status":
    answer = script["status"].pop(0) if len(script["status"]) > 1 else script["status"][0]
    (here / "script.json").write_text(json.dumps(script))
    if answer == "FAULT":
        sys.exit("502 Bad Gateway")
    print(f'me/pneumolib-tiny has status "KernelWorkerStatus.{{answer}}"')
else:
    target = pathlib.Path(sys.argv[sys.argv.index("-p") + 1]) / "pneumolib"
    for name, text in script["files"].items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
"""
PUSHED = "Kernel version 3 successfully pushed.  Please check progress at https://www.kaggle.com/code/me/pneumolib-tiny"
REFUSED = "Kernel push error: Maximum weekly TPU quota of 20.00 hours reached."
UNKNOWN = "The following are not valid {} sources and could not be added to the kernel: ['me/gone']\n" + PUSHED
OUTCOME = {"study": "tiny", "commit": "c", "state": "finished", "code": 0, "seconds": 1.0, "headline": "all well"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A tiny project under git, with the bundle for Kaggle."""
    project = Project(tmp_path_factory.mktemp("project"))
    assert "no git checkout" in project.run("kaggle", "tiny", code=1)
    project.write(".gitignore", "/build/\n")
    project.head = project.commit()
    project.said = project.run("kaggle", "tiny", "--accelerator", "gpu", "--hours", "2.5")
    project.kaggle = project.root / "build/kaggle/tiny"
    project.found = cells(project.kaggle)
    return project


def cells(folder: Path) -> dict:
    """Cells of the built notebook by their first tag or first line."""
    notebook = nbformat.read(folder / "pneumolib-tiny.ipynb", as_version=4)
    nbformat.validate(notebook)
    return {[*c.metadata.get("tags", []), c.source.split("\n", 1)[0]][0]: c for c in notebook.cells}


def metadata(folder: Path) -> dict:
    return json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))


def test_the_notebook_carries_everything(project):
    packed = re.search(r'PACKED = """\n(.*?)"""', project.found["packed"].source, re.DOTALL)[1]
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed)), mode="r:xz") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    assert {name for name in files if not name.startswith(("notebooks/", "params/"))} == {
        "pyproject.toml", *(str(file.relative_to(REPO)) for file in (REPO / "pneumolib").rglob("*.*")
                            if file.is_file() and file.parent.name != "__pycache__"),
    }  # fmt: skip
    assert files["pneumolib/hosts.py"] == (REPO / "pneumolib/hosts.py").read_bytes()
    assert {name for name in files if name.startswith("params")} == {
        f"params/tiny/{name}.yaml" for name in ("study", "01_quick", "03_baseline_cnn", "07_comparison")
    }
    first = json.loads(files["notebooks/03_baseline_cnn.ipynb"])["cells"][1]
    assert f'LIBRARY, REF = "https://github.com/pneumolib/pneumolib", "{project.head}"\n' in first["source"]
    assert 'study = "tiny"\nsmoke = False' in project.found["parameters"].source
    study = (project.root / "params/tiny/study.yaml").read_text(encoding="utf-8")
    assert project.found["%%writefile params/tiny/study.yaml"].source.endswith(study.rstrip())
    # IPython refuses to write an empty file.
    assert len(project.found["%%writefile params/tiny/01_quick.yaml"].source.splitlines()) == 2


def test_uncommitted_changes_and_what_the_command_was_told_are_carried_and_said(project, monkeypatch):
    assert f"commit {project.head}\n" in project.said
    (notebook,) = project.kaggle.glob("*.ipynb")
    assert notebook.stat().st_size < 600_000  # more than a megabyte is said to be too much for Kaggle
    first = metadata(project.kaggle)
    assert first["dataset_sources"] == first["kernel_sources"] == []  # drawn images
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setattr(kaggle.shutil, "which", lambda *_, **__: None)
    project.write("params/tiny/07_comparison.yaml", "# changed\n")
    said = project.run("kaggle", "tiny", "--push", "--resume", "me/earlier", code=1)
    project.write("params/tiny/07_comparison.yaml", "")
    assert f"commit {project.head}+changes" in said
    assert "client is not installed" in said
    assert "KAGGLE_API_TOKEN" in said
    assert "and uncommitted changes" in cells(project.kaggle)["# Study `tiny` of pneumolib"].source
    assert metadata(project.kaggle)["kernel_sources"] == ["me/earlier"]


def test_metadata_keeps_the_notebook_private_and_names_no_image_of_kaggles_own(tmp_path):
    bundle = Bundle(tmp_path / "pneumolib-tiny.ipynb", "c", "s", needs_radiographs=True)
    for accelerator, shape in (("tpu", "TpuV5E8"), ("gpu", "NvidiaTeslaT4"), ("none", None)):
        kaggle.write_metadata(bundle, accelerator, "1", DATASET, "me")
        found = metadata(tmp_path)
        assert found["id"] == "me/pneumolib-tiny" == found["kernel_sources"][0]
        assert (found.get("machine_shape"), found["enable_tpu"]) == (shape, accelerator == "tpu")
        assert found["is_private"] is True
        assert found["dataset_sources"] == [DATASET]
        assert "docker_image" not in found


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A `kaggle` on the path that answers by a script, and a bundle to push; returns how to push with which answers."""
    program = tmp_path / "bin/kaggle"
    program.parent.mkdir()
    program.write_text(CLIENT.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    bundle = Bundle(tmp_path / "pneumolib-tiny.ipynb", "c", "stamp1", needs_radiographs=False)
    kaggle.write_metadata(bundle, "tpu", "", DATASET, "me")

    def push(push=PUSHED, status=("COMPLETE",), outcome=None, hours=1.0):
        said = json.dumps(OUTCOME | {"stamp": "stamp1"} | (outcome or {}))
        files = {"outcome.json": said, "reports/tiny/index.html": "page"}
        script = {"push": push, "status": list(status), "files": files}
        (program.parent / "script.json").write_text(json.dumps(script), encoding="utf-8")
        return kaggle.push(bundle, hours, pause_s=0)

    push.folder = tmp_path
    push.calls = lambda: (program.parent / "calls.txt").read_text(encoding="utf-8").splitlines()
    return push


def test_pushed_waited_for_and_fetched(client, capsys):
    (client.folder / "output/old").mkdir(parents=True)
    # A first session has nothing to go on from, and runs.
    outcome = client(push=UNKNOWN.format("kernel"), status=("QUEUED", "RUNNING", "FAULT", "RUNNING", "COMPLETE"))
    assert outcome["code"] == 0
    assert client.calls()[0] == f"kernels push -p {client.folder}"
    assert client.calls()[1:-1] == ["kernels status me/pneumolib-tiny"] * 5
    index = client.folder / "output/pneumolib/reports/tiny/index.html"
    assert index.read_text(encoding="utf-8") == "page"
    assert not (client.folder / "output/old").exists()
    assert f"Index: {index}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"push": REFUSED}, "did not take"),
        ({"push": UNKNOWN.format("dataset")}, "did not take"),
        ({"status": ["RUNNING", "ERROR"]}, "ended with ERROR"),
        ({"status": ["FAULT"], "hours": 0}, r"still no answer \(502 Bad Gateway\)"),
        ({"status": ["RUNNING"], "hours": 0}, "still RUNNING, and not waited for"),
        ({"outcome": {"stamp": "other"}}, "that of another bundle"),
    ],
)
def test_what_can_go_wrong_there_is_said(client, answers, message):
    with pytest.raises(PneumolibError, match=message):
        client(**answers)
    assert not (client.folder / "output").exists()


@pytest.mark.parametrize(
    ("limit_s", "deaf", "code"), [(60, False, 3), (1.0, False, 75), (1.0, True, 75)], ids=["in time", "late", "deaf"]
)
def test_a_study_is_ended_before_the_machine_is_taken(tmp_path, monkeypatch, capsys, limit_s, deaf, code):
    """Kaggle keeps nothing of a session that it has to end itself."""
    monkeypatch.setattr(bundles, "GRACE_S", 1.0)
    child = f"""
        import signal, sys, time
        {"signal.signal(signal.SIGINT, signal.SIG_IGN)" if deaf else ""}
        print("at work", flush=True)
        try:
            {"time.sleep(60)" if code == 75 else "pass"}
        except KeyboardInterrupt:
            sys.exit(130)
        sys.exit(3)
    """
    assert bundles._watch([sys.executable, "-c", textwrap.dedent(child)], tmp_path, limit_s) == code
    assert capsys.readouterr().out == "at work\n"


def test_the_folder_that_the_study_means_is_read(project, monkeypatch):
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(project.root))
    archive, revised = Path("/kaggle/input/chest_xray"), Path("/kaggle/input/pneumonia-xray-images")
    here = Prepared("kaggle", project.root, [archive, revised])
    assert bundles._data_option(here, "tiny") == []  # draws its own
    for root, found in (("chest_xray", archive), ("pneumonia-xray-images", revised)):
        project.write("params/real/study.yaml", f"data: {{source: kaggle_folder, root: data/{root}}}")
        project.write("params/real/01_quick.yaml", "")
        assert bundles._data_option(here, "real") == ["--data", str(found)]


def test_the_commands_for_colab_and_the_schedule_for_google_cloud(project, tmp_path):
    lines = project.run("colab", "tiny", "--accelerator", "tpu", "--hours", "3").splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["new", "drivemount", "exec", "stop"]
    assert Path(shlex.split(lines[3])[5]).is_file()
    assert lines[3].endswith("--timeout 11400")
    bundle = Bundle(tmp_path / "a b/pneumolib-tiny.ipynb", "c", "s", True)
    copy, create = map(shlex.split, kaggle.colab_commands(bundle, "tpu", 3, schedule=True).splitlines())
    assert copy[3] == str(bundle.notebook)
    assert {f"--gcs-notebook-uri={copy[4]}", "--execution-timeout=210m"} <= set(create)


def test_the_weekly_workflow_may_read_and_nothing_else_ends_by_itself_and_hides_its_secrets():
    flow = yaml.safe_load((REPO / ".github/workflows/study.yml").read_text(encoding="utf-8"))
    (job,) = flow["jobs"].values()
    assert flow["permissions"] == {"contents": "read"}
    assert job["timeout-minutes"] < 360
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name) for name in used)
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    assert "make kaggle" in commands
    # Inputs of a person and secrets reach the shell as variables, never as text of the command.
    assert not re.search(r"\$\{\{|secrets\.", commands)
    assert "--require-hashes -r requirements.kaggle.lock" in commands
    push = next(step for step in job["steps"] if "KAGGLE_API_TOKEN" in step.get("env", {}))
    for names, code in (("API_TOKEN USERNAME", 0), ("KEY USERNAME", 0), ("API_TOKEN", 1), ("USERNAME", 1), ("", 1)):
        secrets = {f"KAGGLE_{name}": "x" for name in names.split()}
        command = push["run"].replace("make kaggle", "true")
        assert subprocess.run(["bash", "-ec", command], env=secrets, check=False).returncode == code, names
    first, last = job["steps"][0], job["steps"][-1]
    assert f"steps.{first['id']}.outcome == 'success'" in last["if"]
    for name, code in {
        "kermany": 0,
        "tpu-cnn_2": 0,
        "": 1,
        "../x": 1,
        'a"; ls; "': 1,
        "-x": 1,
        "a.b": 1,
        "ä": 1,
    }.items():
        done = subprocess.run(["bash", "-ec", first["run"]], env={"STUDY": name}, check=False)
        assert done.returncode == code, name
