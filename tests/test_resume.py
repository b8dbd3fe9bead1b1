"""Killed and resumed equals never killed: real processes, real SIGKILL, equal to the bit."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from training_child import trained

CHILD = Path(__file__).with_name("training_child.py")
BATCHES = 6 * 6  # of the whole training


def train(folder: Path, out: Path, trainer: str, when: str) -> int:
    command = [sys.executable, CHILD, folder, out, trainer, when]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, -9), done.stderr[-3000:]
    return done.returncode


@pytest.mark.parametrize(
    ("trainer", "moments"), [("cnn", ["batch", "write:2", "after_fit"]), ("head", ["batch"])], ids=["cnn", "head"]
)
def test_killed_and_resumed_equals_never_killed(tmp_path, trainer, moments):
    expected, pieces = trained(tmp_path / "a", trainer), tmp_path / "pieces.json"
    batch = random.randrange(8, BATCHES // 2)  # a new one each time: in the second or third epoch
    moments = [f"batch:{batch}" if when == "batch" else when for when in moments]
    for when in moments:
        assert train(tmp_path / "b", pieces, trainer, when) == -9, when
    assert train(tmp_path / "b", pieces, trainer, "never") == 0
    found = json.loads(pieces.read_text(encoding="utf-8"))
    assert found["history"] == expected["history"], moments
    assert found == expected, moments
    assert not list((tmp_path / "b").glob("*.tmp"))
