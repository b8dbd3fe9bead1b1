"""Killed and resumed equals never killed: real processes, real SIGKILL, equal to the bit."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from training_child import trained

CHILD = Path(__file__).with_name("training_child.py")
BATCHES = 6 * 6  # of a whole training


def killed(folder: Path, when: str) -> str:
    """What the process said before it was killed."""
    command = [sys.executable, "-u", CHILD, folder, when]  # -u: nothing said is lost
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == -9, (when, done.stderr[-3000:])
    return done.stdout


@pytest.mark.slow
def test_killed_and_resumed_equals_never_killed(tmp_path, capsys):
    """Each process goes on from where the one before was killed; the last of them is this one."""
    expected = {trainer: trained(tmp_path / f"{trainer}-whole", trainer) for trainer in ("cnn", "head")}
    cnn, head = (random.randrange(8, BATCHES // 2) for _ in expected)  # new each time: in the second or third epoch
    moments = [f"cnn:batch:{cnn}", "cnn:write:2", f"head:batch:{head}"]
    heard = [killed(tmp_path, when) for when in moments]
    assert ["Taken up after epoch" in text for text in heard] == [False, True, True], moments
    for trainer, whole in expected.items():
        capsys.readouterr()
        found = trained(tmp_path / f"{trainer}-killed", trainer)
        said = capsys.readouterr().out
        assert "Taken up after epoch" in said, moments
        assert ("nothing left to train" in said) == (trainer == "cnn"), moments
        assert found["history"] == whole["history"], moments
        assert found == whole, moments
        assert not list((tmp_path / f"{trainer}-killed").glob("*.tmp*"))
