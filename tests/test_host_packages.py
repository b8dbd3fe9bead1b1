"""What a host lacks is added by the real pip, from wheels made here; what it brings stays."""

import zipfile
from importlib import metadata

import pytest

from pneumolib import host_packages
from pneumolib.host_packages import PackagesError, add_missing, constraints, missing, requirements


def wheel(folder, name: str, *needs: str) -> None:
    """A package of one empty module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            "Version: 1.0",
            *(f"Requires-Dist: {need}" for need in needs),
        ]
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """The real pip without any index, installing into a folder of the test."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_PREFIX", str(tmp_path / "prefix"))
    return tmp_path


def test_here_nothing_is_missing_and_pip_is_not_called(monkeypatch):
    monkeypatch.setattr(host_packages.subprocess, "run", None)
    assert missing() == []
    assert add_missing() == []


@pytest.mark.hosts
def test_what_is_missing_is_added_and_nothing_else(pip, monkeypatch):
    wheel(pip, "probe_lacking", "numpy", "probe_under")
    wheel(pip, "probe_under")
    monkeypatch.setattr(host_packages, "requirements", lambda: ["numpy>=1", "Probe.Lacking", "pandas"])
    assert add_missing() == ["probe-lacking"]
    added = {found.name for found in (pip / "prefix").rglob("*.dist-info")}
    assert added == {"probe_lacking-1.0.dist-info", "probe_under-1.0.dist-info"}


@pytest.mark.hosts
@pytest.mark.parametrize("own", [True, False], ids=["our own bound", "a bound of what is added"])
def test_what_is_there_is_never_replaced(pip, monkeypatch, own):
    wheel(pip, "numpy")  # another version could be had
    wheel(pip, "probe_lacking", *([] if own else ["numpy<2"]))
    monkeypatch.setattr(host_packages, "requirements", lambda: ["numpy<2" if own else "numpy", "probe-lacking"])
    with pytest.raises(
        PackagesError, match=r"(?s)probe-lacking: missing or too old here.*nothing was changed.*numpy=="
    ) as fault:
        add_missing()
    assert metadata.version("numpy") in str(fault.value)
    assert not (pip / "prefix").exists()


def test_constraints_name_each_package_once_at_its_version():
    lines = constraints()
    assert f"numpy=={metadata.version('numpy')}" in lines
    assert len({line.split("==")[0] for line in lines}) == len(lines)
    assert not [line for line in lines if line.startswith("pneumolib")]


def test_the_requirements_are_those_of_pyproject_and_name_no_tensorflow():
    """Colab and Kaggle bring TensorFlow, each its own."""
    assert "papermill>=2.6" in requirements()
    assert not [line for line in requirements() if line.startswith(("tensorflow", "jax", "jupyter"))]


def test_what_is_too_old_counts_as_missing(monkeypatch):
    """Kaggle's GPU image pinned nbconvert 6: pip is asked, and refuses."""
    monkeypatch.setattr(
        host_packages, "installed", lambda: {"nbconvert": "6.4.5", "pydicom": "3.0.2", "keras": "3.10.0"}
    )
    monkeypatch.setattr(host_packages, "requirements", lambda: ["nbconvert>=7", "pydicom>=3", "keras>=3.9", "tqdm"])
    assert missing() == ["nbconvert", "tqdm"]


def test_a_host_without_tensorflow_gets_the_one_for_cpus(monkeypatch):
    monkeypatch.setattr(host_packages, "find_spec", lambda name: None)
    assert missing() == ["tensorflow-cpu"]
