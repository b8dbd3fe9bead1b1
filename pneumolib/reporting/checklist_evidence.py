"""What a study's results say to the questions of a checklist: its runs, its audit, and answers put together from them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from pneumolib.params import COMPARISON
from pneumolib.reporting.results import Result
from pneumolib.reporting.run_words import NOT, is_archive

Status = Literal["answered", "in part", "not available", "for the author"]
STATUSES = get_args(Status)


@dataclass(frozen=True)
class Answer:
    """What can be said to one question.

    Attributes:
        lines: plain text, one thought or one run each.
        runs: names of runs whose pages show more.
    """

    status: Status
    lines: list[str]
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evidence:
    """The finished runs of a study, all of them."""

    study: str
    results: list[Result]

    @cached_property
    def trained(self) -> list[Result]:
        """Runs with figures on test."""
        return [r for r in self.results if r.metrics.get("test")]

    @cached_property
    def explored(self) -> Result | None:
        """The run with the audit."""
        return next((r for r in self.results if "audit" in r.checks), None)

    @property
    def first(self) -> Result:
        """The run to read what all of a study share, such as the source: a trained one where there is one."""
        return (self.trained or self.results)[0]

    @property
    def pages(self) -> list[str]:
        """Names of the trained runs."""
        return [r.run for r in self.trained]

    @property
    def audit(self) -> dict | None:
        """The audit's findings, None without an exploration."""
        return self.explored and self.explored.checks["audit"]

    @property
    def audit_pages(self) -> list[str]:
        """The exploration's name, or nothing."""
        return [self.explored.run] if self.explored else []

    @property
    def comparisons(self) -> list[str]:
        """Names of the runs that compare the others."""
        return [r.run for r in self.results if r.notebook == COMPARISON]

    @property
    def tried_elsewhere(self) -> list[Result]:
        """Runs that tried a frozen model on another source."""
        return [r for r in self.results if "external" in r.checks]

    def each(self, say: Callable[[Result], str]) -> Answer:
        """What every trained run says: once where all say the same, else by run. In part where some say nothing."""
        told = {r.run: say(r) for r in self.trained}
        silent = [run for run, words in told.items() if words == NOT]
        if len(silent) == len(told):
            return Answer("not available", ["The results hold nothing on it."])
        same = len(set(told.values())) == 1
        lines = [next(iter(told.values()))] if same else [f"{run}: {words}" for run, words in told.items()]
        return Answer("in part" if silent else "answered", [_sentence(line) for line in lines], self.pages)

    def checked(self, check: str, say: Callable[[Result], str]) -> Answer:
        """As `each`, of runs that made this check; the others say nothing."""
        return self.each(lambda r: say(r) if r.checks.get(check) else NOT)

    def by_source(self, archive: Answer, drawn: str, own: str) -> Answer:
        """An answer that hangs on whose images they are; drawn ones and a user's own have nothing to show."""
        if is_archive(self.first):
            return archive
        return Answer("not available", [drawn if self.first.synthetic else own])


def _sentence(line: str) -> str:
    return line if line.endswith(".") else line + "."
