"""What a session reached is packed, and the next one takes it up."""

import tarfile

import pytest

from pneumolib.kept_runs import PACKED, Keeper, take_up


def write(root, **files: str):
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def session(tmp_path):
    """A run that has finished, a training that has not, and what no one needs of either."""
    session = tmp_path / "session"
    for name, text in {
        "01_exploration/result.json": "{}",
        ".training/03_baseline_cnn/checkpoint.npz": "epoch 3",
        ".training/03_baseline_cnn/checkpoint.npz.tmp": "half",
        ".work-03_baseline_cnn/run.log": "at work",
        ".03_baseline_cnn.lock": "",
    }.items():
        file = session / "runs/demo" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return session


def files(root) -> dict[str, str]:
    return {str(f.relative_to(root)): f.read_text(encoding="utf-8") for f in sorted(root.rglob("*")) if f.is_file()}


TAKEN = {"runs/demo/01_exploration/result.json": "{}", "runs/demo/.training/03_baseline_cnn/checkpoint.npz": "epoch 3"}


def test_only_what_is_hidden_is_packed_and_only_when_it_has_changed(session):
    keeper = Keeper(session, pause_s=0)
    assert keeper.pack()
    with tarfile.open(session / PACKED) as archive:
        assert archive.getnames() == ["runs/demo/.training/03_baseline_cnn/checkpoint.npz"]
    assert not keeper.pack()
    checkpoint = session / "runs/demo/.training/03_baseline_cnn/checkpoint.npz"
    checkpoint.write_text("epoch four", encoding="utf-8")
    assert keeper.pack()
    assert not list(session.glob("*.tmp"))


def test_between_two_packings_there_is_a_pause(session):
    keeper = Keeper(session, pause_s=3600)
    assert keeper.pack()  # the first at once: the machine may be gone in a minute
    (session / "runs/demo/.training/03_baseline_cnn/checkpoint.npz").write_text("epoch four", encoding="utf-8")
    assert not keeper.pack()
    assert keeper.pack(now=True)


def test_nothing_to_pack_leaves_no_file(tmp_path):
    assert not Keeper(tmp_path).pack(now=True)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("hidden_kept", [True, False])
def test_the_next_session_takes_it_up_whether_hidden_folders_were_kept_or_not(session, tmp_path, hidden_kept):
    Keeper(session).pack()
    if not hidden_kept:
        for file in session.rglob(".*"):
            if file.is_dir() and not file.name.startswith(".work"):
                (file / "03_baseline_cnn/checkpoint.npz").unlink()
    else:
        (session / PACKED).unlink()
    project = tmp_path / "next"
    assert take_up([session], project) == ["demo/01_exploration", "demo/03_baseline_cnn"]
    assert files(project) == TAKEN
    assert take_up([session], project) == []


def test_what_is_there_stays(session, tmp_path):
    project = tmp_path / "next"
    for name in TAKEN:
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("newer", encoding="utf-8")
    Keeper(session).pack()
    take_up([session], project)
    assert set(files(project).values()) == {"newer"}


def test_a_read_only_input_gives_files_that_can_be_written(session, tmp_path):
    for file in session.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    project = tmp_path / "next"
    take_up([session], project)
    (project / "runs/demo/01_exploration/result.json").write_text("again", encoding="utf-8")
    assert (project / "runs/demo/01_exploration").stat().st_mode & 0o200


def test_a_packed_file_that_was_cut_gives_what_can_be_read(session, tmp_path):
    (session / "runs/demo/.training/04_more").mkdir(parents=True)
    (session / "runs/demo/.training/04_more/checkpoint.npz").write_bytes(b"x" * 100_000)
    Keeper(session).pack()
    whole = (session / PACKED).read_bytes()
    attached = tmp_path / "attached"
    attached.mkdir()
    (attached / PACKED).write_bytes(whole[:2048])
    assert take_up([attached], tmp_path / "next") == ["demo/03_baseline_cnn"]


def test_a_packed_file_writes_nowhere_else(tmp_path):
    attached = tmp_path / "attached"
    attached.mkdir()
    (attached / "outside").write_text("x", encoding="utf-8")
    with tarfile.open(attached / PACKED, "w") as archive:
        for name in ("../outside", "runs/../../a/b/c", "params/demo/study/yaml"):
            archive.add(attached / "outside", name)
    assert take_up([attached], tmp_path / "next") == []
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "next").exists() or files(tmp_path / "next") == {}
