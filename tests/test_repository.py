"""What the repository promises of itself: pins in step, notebooks clean, no host and no path of a machine."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import REPO
from pneumolib.params import check, flatten
from pneumolib.project import EVALUATION, TRAINING, evaluation_of, load_run, study_runs
from pneumolib.study.inputs import declared_parameters
from pneumolib.study.plan import of_run

sys.path.insert(0, str(REPO / "tools"))
from address import NAMES, address, guides, with_bootstrap, with_links
from environment import LOCKED, environment_yml, locked

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
LOCK = (REPO / "requirements.lock").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def tracked_files() -> list:
    done = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [REPO / line for line in done.stdout.splitlines() if (REPO / line).is_file()]


def test_every_requirement_is_locked_within_its_bounds_by_a_hash_and_no_address():
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    pins = {}
    for pin in locked(LOCK):
        pins.setdefault(canonicalize_name(pin.name), []).append(next(iter(pin.specifier)).version)
    for line in [*project["dependencies"], *(line for extra in LOCKED for line in extras[extra])]:
        requirement = Requirement(line)
        versions = pins[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in versions), line
    assert not re.search("://|--index|--find-links", LOCK)
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)


def test_environment_yml_is_in_step():
    text = (REPO / "environment.yml").read_text(encoding="utf-8")
    assert text == environment_yml(LOCK, PYPROJECT), "run `make lock`, or tools/environment.py alone"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean_and_short(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("parameters" in c.metadata.get("tags", []) for c in notebook.cells) == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, "outputs in git: run `make format`"
            assert cell.execution_count is None
            tree = ast.parse(cell.source)
            defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
            assert defined <= {"build", "compile_network", "train_network"}  # the experiment, once more for other seeds
            lines = [x for x in cell.source.splitlines() if x.strip() and not x.strip().startswith("#")]
            # The parameters cell names each of the ten sections, and papermill wants one name for each.
            assert len(lines) <= (12 if "parameters" in cell.metadata.get("tags", []) else 8)
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    assert words > 60


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_cell_makes_colab_and_kaggle_ready(path):
    """Title, bootstrap, parameters; the address is pyproject.toml's: a fork runs tools/address.py."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    first = notebook["cells"][1]
    assert first["metadata"]["tags"] == ["bootstrap"]
    assert notebook["cells"][2]["metadata"]["tags"] == ["parameters"]
    ref = re.search(r'REF = "[^"]+", "([^"]+)"', "".join(first["source"]))[1]
    assert with_bootstrap(notebook, address(PYPROJECT), ref) == notebook


@pytest.mark.parametrize("path", guides(), ids=lambda p: p.stem)
def test_links_between_guides_resolve(path):
    """Files and headings exist, and the repository's address is pyproject.toml's. One guide opens each notebook elsewhere."""
    text = path.read_text(encoding="utf-8")
    assert with_links(text, address(PYPROJECT)) == text
    opened = re.findall(r"(?:colab|kaggle)\S+/blob/main/notebooks/(\w+)\.ipynb\)", text)
    assert sorted(opened) == (sorted([*NAMES, *NAMES]) if path.stem == "platforms" else [])
    for file, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = path.parent / file if file else path
        assert target.is_file(), file
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else [""]
        assert heading in [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings], heading


def test_the_citation_has_version_licence_and_address_of_pyproject():
    text, project = (REPO / "CITATION.cff").read_text(encoding="utf-8"), PYPROJECT["project"]
    citation = yaml.safe_load(text)
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]
    assert all((REPO / file).is_file() for file in project["license-files"])
    assert with_links(text, address(PYPROJECT)) == text
    assert citation["repository-code"] == address(PYPROJECT)


def test_the_readme_is_short_and_its_results_are_those_of_the_docs():
    readme, results = ((REPO / file).read_text(encoding="utf-8") for file in ("README.md", "docs/results.md"))
    assert len(readme.split()) <= 1200
    assert re.search(r"<!-- results -->.*<!-- end of results -->", readme, re.DOTALL)[0] in results


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_carries_the_demos_values(path):
    """As it is, in JupyterLab, it shows what `make report` shows."""
    cell = declared_parameters(path)
    run = path.stem if path.stem != EVALUATION else evaluation_of(TRAINING[0])
    params = of_run(run, load_run(study_runs(REPO / "params/demo")[run])[0])
    assert flatten(check(cell).model_dump(include=set(cell))) == flatten(params.model_dump(include=set(cell)))


@pytest.mark.parametrize("path", sorted((REPO / "params").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_parameter_file_is_valid_and_explained(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert 1 <= sum(line.startswith("#") for line in lines) <= 12
    if path.name != "study.yaml":
        load_run(path)


def test_no_registry_host_and_no_path_of_a_machine():
    hosts = re.compile(r"pypi\.o" + r"rg|pythonhosted\.o" + r"rg|registry\.npmjs|deb\.debian|anaconda\.o" + "rg")
    paths = re.compile(r"(?<![\w.])/(work|farm|root|home/\w+)/")
    for file in tracked_files():
        if file.suffix not in (".png", ".jpeg"):
            text = file.read_text(encoding="utf-8")
            assert not hosts.search(text), file
            assert not paths.search(text), file
            # The data beside the repository is on its developers' machines only.
            used = {"params", "notebooks", "pneumolib", "docs", "README.md", "Makefile"}
            is_used = file.relative_to(REPO).parts[0] in used
            assert not (is_used and re.search(r"\.\./shared|shared/data", text)), file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs `make` where .venv/bin/python only says what it was given; returns its words."""
    folder = tmp_path_factory.mktemp("make")
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" >> said\n", encoding="utf-8")
    python.chmod(0o755)
    for source, copy in (
        ("Makefile", "Makefile"),
        ("requirements.lock",) * 2,
        ("requirements.lock", ".venv/.installed"),
    ):
        shutil.copy(REPO / source, folder / copy)
    before = {path.name for path in folder.iterdir()}

    def run(target: str, values: dict[str, str], environment: dict[str, str] | None = None) -> list[str]:
        words = [f"{name}={value}" for name, value in values.items()]
        env = {"PATH": os.environ["PATH"]} | (environment or {})
        subprocess.run(["make", target, *words], cwd=folder, env=env, capture_output=True, check=True)
        said = (folder / "said").read_text(encoding="utf-8").split("\0")[:-1]
        (folder / "said").unlink()
        assert {path.name for path in folder.iterdir()} == before, "a value was run as a command"
        return said[2:]

    return run


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("data FROM=a.zip TO=c", "data --from a.zip --to c"),
        ("report STUDY=s DATA=/a FORCE=1 V=1", "report --data /a --force --verbose -- s"),
        ("report FORCE=0", "report -- demo"),
        ("app RUN=s/03_x PORT=80 BROWSE=1", "app --port 80 --browse -- s/03_x"),
        ("kaggle STUDY=s PUSH=1 RESUME=1 HOURS=2 ACCELERATOR=gpu",
         "kaggle --accelerator gpu --hours 2 --push --resume 1 -- s"),
        ("colab STUDY=s SMOKE=1 SCHEDULE=1", "colab --accelerator tpu --smoke --schedule -- s"),
    ],
)  # fmt: skip
def test_make_hands_its_variables_on(made, words, command):
    target, *values = words.split()
    assert made(target, dict(word.split("=") for word in values)) == command.split()


TARGETS = {
    "report": ("STUDY", "DATA", "FORCE", "SMOKE", "V"),
    "data": ("FROM", "ADDRESS", "TO"),
    "open": ("RUN", "DATA", "SMOKE"),
    "app": ("RUN", "PORT", "BROWSE"),
    "kaggle": ("STUDY", "ACCELERATOR", "HOURS", "SMOKE", "PUSH", "RESUME", "DATASET"),
    "colab": ("STUDY", "ACCELERATOR", "HOURS", "SMOKE", "SCHEDULE"),
}
NASTY = (
    'x"; touch hit; "',
    "$(shell touch hit)",
    "`touch hit`",
    "$$(touch hit)",
    "$(touch hit)",
    'a\'b "c" \\',
    "#a  b",
    "-x",
    "~/ä b",
    "${PATH}",
)
SWITCHES = {"FORCE", "SMOKE", "V", "BROWSE", "PUSH", "SCHEDULE"}


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NASTY) | st.text("ab \"'`$(){};&|<>\\#%*~", min_size=1), st.booleans())
@example(NASTY[0], False)
@example(NASTY[1], False)
@example(NASTY[1], True)
def test_make_takes_every_value_as_text(made, target, value, from_environment):
    assume(value.strip())  # make trims what is blank to nothing, and `open` then asks for a run
    values = dict.fromkeys(TARGETS[target], value)
    said = made(target, {}, values) if from_environment else made(target, values)
    wanted = [name for name in values if name not in SWITCHES]
    # make itself trims spaces in front of a command line's value.
    whole = value if from_environment else value.lstrip()
    assert said.count(whole) == len(wanted)


@pytest.mark.parametrize("extra", ["kaggle", "snakemake"])
def test_the_lock_of_an_extra_agrees_with_the_lock(extra):
    text = (REPO / f"requirements.{extra}.lock").read_text(encoding="utf-8")
    (wanted,) = map(Requirement, PYPROJECT["project"]["optional-dependencies"][extra])
    pins = {canonicalize_name(pin.name): str(pin.specifier) for pin in locked(text)}
    ours = {canonicalize_name(pin.name): str(pin.specifier) for pin in locked(LOCK) if not pin.marker}
    assert wanted.specifier.contains(pins[extra].removeprefix("=="))
    assert {name for name in pins.keys() & ours.keys() if pins[name] != ours[name]} == set()
    assert not re.search("://|--index|--find-links", text)
    assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:])
