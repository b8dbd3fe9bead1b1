"""What an audit found: a verdict, a number with its interval, and a sentence that says what it means."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

Verdict = Literal["ok", "note", "warning", "error"]


class AuditError(ValueError):
    """Tables that cannot be audited; the message names the column, image or file."""


@dataclass(frozen=True)
class Finding:
    """One thing the audit looked at.

    Attributes:
        name: snake_case key in `result.json`.
        verdict: `ok`; `note`, worth knowing; `warning`, figures may mislead; `error`, to be mended before training.
        value: what was counted or computed, None where that was not possible.
        sentence: plain words with the number in them, ending with what it means.
        low, high: ends of the interval, None where there is none.
    """

    name: str
    verdict: Verdict
    value: float | int | None
    sentence: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise AuditError(f"finding: name: received {self.name!r}, allowed are snake_case keys")
        if self.verdict not in get_args(Verdict):
            raise AuditError(
                f"{self.name}: verdict: received {self.verdict!r}, allowed: {', '.join(get_args(Verdict))}"
            )
        if not self.sentence.endswith("."):
            raise AuditError(f"{self.name}: sentence: received {self.sentence!r}, expected a whole sentence")


def as_checks(findings: Iterable[Finding]) -> dict[str, dict]:
    """`{name: {"verdict", "value", "low", "high", "sentence"}}` in plain JSON values, for `result.json`.

    Raises:
        AuditError: two findings of one name, of which one would be lost.
    """
    checks = {}
    for finding in findings:
        if finding.name in checks:
            raise AuditError(f"{finding.name}: two findings of one name; give one of them another")
        numbers = {key: _plain(getattr(finding, key)) for key in ("value", "low", "high")}
        checks[finding.name] = {"verdict": finding.verdict, **numbers, "sentence": finding.sentence}
    return checks


def _plain(number: float | int | None) -> float | int | None:
    """Python's own number in place of NumPy's; NaN and infinity, which JSON does not know, become None."""
    if number is None or not math.isfinite(number):
        return None
    return int(number) if isinstance(number, Integral) else float(number)
