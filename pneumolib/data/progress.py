"""One way to show that a long loop is alive."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(items: Iterable, total: int, what: str, unit: str = "image") -> Iterable:
    """`items` with a plain tqdm bar on stderr (not `tqdm.auto`, whose widgets load from a network).

    A terminal sees it move; a log or a page, which would keep every state, only every ten seconds.
    """
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(items, total=total, desc=what, unit=unit, mininterval=interval, disable=total == 0)
