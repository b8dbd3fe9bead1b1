"""What exporters and converters say: kept off the terminal, and there when they fail."""

import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

_LAST_WORDS = 600  # characters


class _Aside(io.TextIOBase):
    """Stands in for a stream and writes to a file instead; once `over`, to the stream again, as loggers keep what they met."""

    def __init__(self, stream: Any, file: int):
        self.stream, self.file, self.over = stream, file, False

    def write(self, text: str) -> int:
        if self.over:
            return self.stream.write(text)
        os.write(self.file, text.encode())
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def aside() -> Iterator[Callable[[], str]]:
    """Keep off the terminal what is said within, by Python or past it. Yields what returns the last words of it."""
    kept = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as file, warnings.catch_warnings():
        # Keras asks NumPy for a name that tf2onnx still uses.
        warnings.filterwarnings("ignore", "In the future `np.object` will be defined", FutureWarning)
        out, err = (_Aside(stream, file.fileno()) for stream in (sys.stdout, sys.stderr))
        out.flush()
        err.flush()
        try:
            for number in kept:
                os.dup2(file.fileno(), number)
            with redirect_stdout(out), redirect_stderr(err):
                yield lambda: _end_of(file.fileno())
        finally:
            out.over = err.over = True
            for number, old in kept.items():
                os.dup2(old, number)
                os.close(old)


def _end_of(file: int) -> str:
    size = os.fstat(file).st_size
    return os.pread(file, _LAST_WORDS, max(0, size - _LAST_WORDS)).decode("utf-8", "replace").strip() or "none"
