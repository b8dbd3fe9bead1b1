"""A run as it goes: live in the terminal, and the same without control codes in `run.log`."""

import re
import sys
import time
from pathlib import Path

# Escape sequences (colours, cursor, window titles) and what else is not text; carriage returns are dealt with apart.
_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)


class Progress:
    """Takes what cells print (it stands in for a text file) and tells which cell is at work.

    A progress bar rewrites its line with carriage returns: a terminal shows each state in place, the log the last.
    """

    def __init__(self, position: str, run: str, log: Path):
        self.head, self.log = f"{position} {run}".strip(), log
        self.pending, self.began = "", time.monotonic()
        self.live = sys.stdout.isatty()

    def __enter__(self):
        self.file = self.log.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self.flush()
        if self.pending:
            self._line(self.pending)
        self.file.close()

    def cell(self, cells: list, index: int) -> None:
        """Announce a code cell by its number and the heading it stands under."""
        if cells[index].cell_type != "code":
            return
        headings = [line.lstrip("# ") for c in cells[:index] if c.cell_type == "markdown"
                    for line in c.source.splitlines() if line.startswith("#")]  # fmt: skip
        number, total = cell_number(cells, index), cell_number(cells, len(cells) - 1)
        self.say(f"cell {number}/{total}  {headings[-1] if headings else ''}")

    def say(self, text: str) -> None:
        """One line of our own."""
        if self.pending:
            self._line(self.pending)
            self.pending = ""
        self._line(text.rstrip(), f"{self.head}  ")

    def write(self, text: str) -> int:
        """Text that a cell printed, in pieces of any size."""
        *lines, self.pending = (self.pending + text).split("\n")
        for line in lines:
            self._line(line)
        if self.live and self.pending:
            self._show("\r\x1b[K    " + _last_state(self.pending)[:110])
        return len(text)

    def flush(self) -> None:
        self.file.flush()

    def _line(self, text: str, head: str = "    ") -> None:
        text = _last_state(text)
        if text.strip():
            self._show(("\r\x1b[K" if self.live else "") + head + text + "\n")
            self.file.write(f"{time.monotonic() - self.began:7.1f} s  {head}{text}\n")
            self.file.flush()

    def _show(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def cell_number(cells: list, index: int) -> int:
    """The place of a cell, from 1, in the notebook as its author knows it: without the cells that papermill put in."""
    put_in = {"injected-parameters", "papermill-error-cell-tag"}
    return sum(not put_in & set(cell.metadata.get("tags", [])) for cell in cells[: index + 1])


def _last_state(text: str) -> str:
    """What a terminal shows of a line that carriage returns rewrote, without control codes."""
    return _CONTROL.sub("", text).rstrip("\r").rsplit("\r", 1)[-1]
