"""One file over HTTP: resumed where it was cut, verified, and under its name only when whole."""

import base64
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import requests

from pneumolib.data.progress import bar

PAUSES_S = (1, 2, 4)  # between the tries
TIMEOUT_S = (10, 60)  # to connect, between bytes
CHUNK_BYTES = 2**20
PASSING_STATUS = {408, 429, 500, 502, 503, 504}  # answers that another try may change


class DownloadError(RuntimeError):
    """Images that could not be put in place; the message says what was tried and what to do instead."""


class _UnsettledError(Exception):
    """A try that did not bring the whole file, where another may."""


PASSING = (_UnsettledError, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def fetch(url: str, file: Path, check: Callable[[Path], None]) -> None:
    """Fetch one file, going on from what an earlier call left in `<file>.part` if the remote file is still the same.

    `file` gets its name when its size, the checksum if the server publishes one, and its content have been verified.
    A `file` that is there already is asked for too, and kept if it is still the same.

    Args:
        url: of the file; `<file>.json` keeps what the server told of it.
        file: where to put it.
        check: reads the content, and raises ValueError where that is broken.
    Raises:
        DownloadError: the server's refusal, no connection after a few tries, a broken file, or what the disk refuses.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return _try_once(url, file, check)
        except requests.HTTPError as fault:
            reason = _explain_status(fault.response.status_code)
            if fault.response.status_code not in PASSING_STATUS:
                raise DownloadError(f"{url}: {reason}") from None
        except PASSING as fault:
            reason = explain_connection(fault)
        except requests.RequestException as fault:
            raise DownloadError(f"{url}: {fault}") from None
        except OSError as fault:
            raise DownloadError(f"{file}: {explain_disk(fault)}") from None
        if pause_s is not None:
            print(f"{file.parent.name}/{file.name}: {reason}; trying again in {pause_s} s", file=sys.stderr)
            time.sleep(pause_s)
    raise DownloadError(
        f"{url}: {reason}; tried {len(PAUSES_S) + 1} times. What came is kept: the same command goes on from there"
    )


def _try_once(url: str, file: Path, check: Callable[[Path], None]) -> None:
    part, note = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.json")
    if file.is_file():
        os.replace(file, part)
    known = _read_note(note)
    have = part.stat().st_size if part.is_file() and known.get("validator") else 0
    resume = {"Range": f"bytes={have}-", "If-Range": known["validator"]} if have else {}
    headers = {"Accept-Encoding": "identity"} | resume
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416 and have and have == known["size"]:  # nothing is left to send
            return _settle(part, known, file, check)
        if response.status_code in (206, 416) and not _continues(response, have, known):
            part.unlink(missing_ok=True)
            raise _UnsettledError("the remote file changed; starting over")
        response.raise_for_status()
        if response.status_code != 206:
            known, have = _describe(response), 0
            part.unlink(missing_ok=True)  # first, so that no note ever stands beside a part of another file
            note.write_text(json.dumps(known), encoding="utf-8")
        n_chunks = -(-(known["size"] - have) // CHUNK_BYTES)
        with part.open("ab") as out:
            what = f"fetching {file.parent.name}/{file.name}"
            for chunk in bar(response.iter_content(CHUNK_BYTES), n_chunks, what, unit="MiB"):
                out.write(chunk)
    return _settle(part, known, file, check)


def _read_note(note: Path) -> dict:
    """What was told of the file that `.part` belongs to; empty where nothing was."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _describe(response: requests.Response) -> dict:
    """Size in bytes, validator and checksums of the file that begins to come."""
    if not (size := response.headers.get("Content-Length", "")).isdigit():
        raise DownloadError(f"{response.url}: the server tells no length, so a part could not be told from the whole")
    hashes = dict(re.findall(r"(crc32c|md5)=([\w+/]+=*)", response.headers.get("x-goog-hash", "")))
    return {"size": int(size), "validator": _validator(response), "hashes": hashes}


def _validator(response: requests.Response) -> str | None:
    """What tells one edition of the file from another: a strong ETag, else the date, else nothing."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _continues(response: requests.Response, have: int, known: dict) -> bool:
    """Whether a partial answer goes on at byte `have` of the same file; not every server heeds If-Range."""
    expected = rf"bytes {have}-\d+/{known.get('size')}"
    fits = re.fullmatch(expected, response.headers.get("Content-Range", "")) is not None
    return fits and _validator(response) in (None, known["validator"])


def _settle(part: Path, known: dict, file: Path, check: Callable[[Path], None]) -> None:
    """Give `part` its name if it is whole; delete it if it is wrong."""
    size = part.stat().st_size
    if size < known["size"]:
        raise _UnsettledError(f"the connection ended at {size} of {known['size']} bytes")
    if size > known["size"]:
        part.unlink()
        raise _UnsettledError(f"{size} bytes came and not {known['size']}; starting over")
    for name, published in list(known["hashes"].items())[:1]:
        if (computed := _hash_file(part, name)) != published:
            part.unlink()
            raise DownloadError(
                f"{file}: {name} is {computed} and not {published}, as the server says; what came was deleted, and the "
                f"same command fetches it anew"
            )
    try:
        check(part)
    except ValueError as fault:
        part.unlink()
        raise DownloadError(f"{fault}. What came was deleted") from None
    os.replace(part, file)


def _hash_file(file: Path, name: str) -> str:
    """Checksum in base64, as Google's storage publishes it."""
    digest = google_crc32c.Checksum() if name == "crc32c" else hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def _explain_status(status: int) -> str:
    words = {403: "refused (403): it is not public, or there is no such file", 404: "no such file (404)"}
    return words.get(status, f"the server answers {status}") + "; is the address right?" * (status in words)


def explain_disk(fault: OSError) -> str:
    """What the disk said, and what to do."""
    return f"{fault.strerror or fault}. Mend that, or name a folder on another disk: TO=<folder>"


def explain_connection(fault: Exception) -> str:
    """The innermost reason, without the connection that `requests` and `urllib3` wrap around it."""
    inner = fault.args[0] if fault.args else fault
    return str(getattr(inner, "reason", inner)).split("): ", 1)[-1]
