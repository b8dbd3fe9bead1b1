"""`make data` and TFRecord files: really cut, really resumed, verified, counted; hostile archives; words for what can go wrong."""

import contextlib
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import kagglehub
import kagglesdk.kaggle_env
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import REPO
from pneumolib.__main__ import main
from pneumolib.data import download
from pneumolib.data.download import extract_zip, read_records, unpack_pairs
from pneumolib.data.layout import MARKER
from pneumolib.errors import DataError, PneumolibError

CHUNK = 2**14
CUT = CHUNK + 7  # every byte that came counts
BODY = bytes(i * i % 251 for i in range(10 * CHUNK + 5))


class Remote(ThreadingHTTPServer):
    """A server of files in memory, with the faults that servers have.

    `cuts` holds, for the coming bodies, after how many bytes the connection ends; `statuses` what the coming answers are
    instead of 200. `seen` records (Range, If-Range, bytes sent) of each body, `asked` counts all requests.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files, self.headers, self.cuts, self.statuses, self.seen, self.asked = {}, {"ETag": '"one"'}, [], [], [], 0
        self.pause_s = 0  # between bytes
        self.drips = False  # a head that never ends, byte by byte
        self.stall_at, self.released = None, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.server.statuses.pop(0), b'{"code": 0}', {"Content-Type": "application/json"})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        remote, body = self.server, self.server.files.get(self.path.removeprefix("/"))
        status, headers, start = 404 if body is None else 200, dict(remote.headers), 0
        if remote.statuses:
            status = remote.statuses.pop(0)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if wanted and self.headers["If-Range"] in headers.values():
            status, start = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.answer(status, body[start:] if status in (200, 206) else b"", headers)

    def answer(self, status, body, headers):
        remote, whole = self.server, len(body)
        remote.asked += 1
        while remote.drips and not remote.released.wait(0.05):
            self.wfile.write(b"H")
        if self.command == "GET":
            cut = remote.cuts.pop(0) if remote.cuts and status in (200, 206) else None
            body = body[:cut]
            remote.seen.append((self.headers["Range"], self.headers["If-Range"], len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(whole))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for byte in body if remote.pause_s and self.command != "HEAD" else ():
                self.wfile.write(bytes([byte]))
                time.sleep(remote.pause_s)
            if self.command != "HEAD" and not remote.pause_s:
                self.wfile.write(body[: remote.stall_at])
            if remote.stall_at is not None and len(body) > remote.stall_at and self.command != "HEAD":
                self.wfile.flush()
                remote.released.wait(30)
                self.wfile.write(body[remote.stall_at :])
        self.close_connection = len(body) < whole


@pytest.fixture
def remote():
    with Remote() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """No pauses, small chunks, a project of its own, and no proxy between us and the server."""
    monkeypatch.setattr(download, "PAUSES_S", (0, 0, 0))
    monkeypatch.setattr(download, "CHUNK_BYTES", CHUNK)
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def get(remote, folder) -> bytes:
    return download.fetch(f"{remote.url}/x/x.bin", folder).read_bytes()


# One file

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"ETag": '"one"'}, [CUT] * 2 + [len(BODY) - 2 * CUT]),
        ({"ETag": 'W/"weak"', "Last-Modified": DATE}, [CUT] * 2 + [len(BODY) - 2 * CUT]),
        # Without a strong validator each try begins anew.
        ({"ETag": 'W/"weak"'}, [CUT] * 2 + [len(BODY)]),
    ],
)
def test_a_cut_connection_goes_on_where_it_was_cut(remote, tmp_path, capsys, headers, sent):
    remote.files["x/x.bin"], remote.cuts, remote.headers = BODY, [CUT, CUT], headers
    assert get(remote, tmp_path) == BODY
    assert [n for *_, n in remote.seen] == sent
    assert "trying again in 0 s" in capsys.readouterr().err


def test_a_later_call_goes_on_where_the_tries_ended_unless_the_file_changed(remote, tmp_path):
    remote.files["x/x.bin"], remote.cuts = BODY, [CUT] * 4
    with pytest.raises(PneumolibError, match=r"tried 4 times\. What came is kept"):
        get(remote, tmp_path)
    assert get(remote, tmp_path) == BODY
    assert remote.seen[-1] == (f"bytes={4 * CUT}-", '"one"', len(BODY) - 4 * CUT)
    assert get(remote, tmp_path) == BODY  # a whole file is asked about, and not sent again
    assert len(remote.seen) == 5
    remote.files["x/x.bin"], remote.headers = BODY[::-1], {"ETag": '"three"'}
    assert get(remote, tmp_path) == BODY[::-1]
    assert remote.seen[-1] == (None, None, len(BODY))
    download.fetch(f"{remote.url}/x/x.bin", tmp_path).write_bytes(BODY + b"too much")
    assert get(remote, tmp_path) == BODY[::-1]


def test_a_server_slower_than_a_kilobyte_a_second_is_given_up_and_its_bytes_are_kept(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SLOW_S", 0.2)
    remote.files["x/x.bin"], remote.pause_s = BODY, 0.02
    with pytest.raises(PneumolibError, match=r"\d+ bytes came in 0\.2 s, which is too slow\. What came is kept"):
        get(remote, tmp_path)
    (part,) = (tmp_path / "x").iterdir()
    assert BODY.startswith(part.read_bytes())
    came, remote.pause_s = part.stat().st_size, 0
    assert get(remote, tmp_path) == BODY
    assert remote.seen[-1][0] == f"bytes={came}-"
    assert came > 5


def test_a_server_whose_headers_never_end_is_given_up(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", (0.2, 0.3))
    remote.drips = True
    with pytest.raises(PneumolibError, match=r"no whole answer came in 0\.5 s; tried 4 times"):
        get(remote, tmp_path)


@pytest.mark.parametrize(
    ("statuses", "words", "asked"),
    [
        ([404], r"no such file \(404\); is the address right", 1),  # a refusal is not repeated
        ([403], "not public", 1),
        ([503] * 4, "the server answers 503; tried 4 times", 4),
        ([503, 429], None, 4),
    ],
)
def test_refusals_and_busy_servers(remote, tmp_path, statuses, words, asked):
    remote.files["x/x.bin"], remote.statuses = BODY, statuses
    with pytest.raises(PneumolibError, match=words) if words else contextlib.nullcontext():
        get(remote, tmp_path)
    assert remote.asked == asked


# TFRecord files


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def frame(payload: bytes) -> bytes:
    length = len(payload).to_bytes(8, "little")
    return length + masked(length) + payload + masked(payload)


def changed(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


def write_records(path, payloads) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(frame, payloads)))


def jpeg(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write_pair(source, part: str, images: dict[str, bytes]) -> None:
    write_records(source / part / "images.tfrec", images.values())
    write_records(source / part / "paths.tfrec", [path.encode(errors="surrogateescape") for path in images])


TRAIN = {
    "gs://bucket/chest_xray/train/NORMAL/IM-0001-0001.jpeg": jpeg(1),
    "/home of/somebody/val/PNEUMONIA/person2_virus_2.jpeg": jpeg(2),
    "chest_xray\\train\\opacity\\person3_bacteria_3.jpeg": jpeg(3),
    "Normal/IM-0004-0001.jpeg": jpeg(4),
}
TEST = {"test/NORMAL/IM-0005-0001.jpeg": jpeg(5), "test/PNEUMONIA/person6_virus_6.jpeg": jpeg(6)}
UNPACKED = {
    "train/NORMAL/IM-0001-0001.jpeg": jpeg(1),
    "val/PNEUMONIA/person2_virus_2.jpeg": jpeg(2),
    "train/PNEUMONIA/person3_bacteria_3.jpeg": jpeg(3),
    "train/NORMAL/IM-0004-0001.jpeg": jpeg(4),
    **TEST,
}


@pytest.fixture
def source(tmp_path):
    write_pair(tmp_path / "records", "train", TRAIN)
    write_pair(tmp_path / "records", "test", TEST)
    return tmp_path / "records"


def contents(root) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name != MARKER)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


ABSURD = (2**60).to_bytes(8, "little")
FLIPPED = [(0, "its length"), (9, "its length"), (13, "its 3 bytes"), (17, "its 3 bytes")]


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        *((frame(b"def")[:cut], "the file ends within") for cut in (1, 11, 13, 17, 18)),
        *((changed(frame(b"def"), place), f"the checksum of {what} does not fit") for place, what in FLIPPED),
        # Refused before memory is asked for.
        (ABSURD + masked(ABSURD) + b"abc", f"{2**60} bytes; at most 67108864 are allowed"),
    ],
)
def test_a_broken_record_is_named_with_number_and_offset(tmp_path, second, fault):
    file = tmp_path / "x.tfrec"
    file.write_bytes(frame(b"abc") + second)
    records = read_records(file)
    assert next(records) == b"abc"
    with pytest.raises(DataError, match=rf"x\.tfrec: record 2 at byte 19: {fault}"):
        next(records)


# What `tf.io.TFRecordWriter` of TensorFlow 2.21 wrote for an empty record and for b"one".
BY_TENSORFLOW = "000000000000000029039807d8ea82a20300000000000000b099490e6f6e6501405508"


def test_what_tensorflow_writes_is_read(tmp_path):
    (tmp_path / "x.tfrec").write_bytes(bytes.fromhex(BY_TENSORFLOW) + frame(bytes(100_000)))
    assert list(read_records(tmp_path / "x.tfrec")) == [b"", b"one", bytes(100_000)]


def test_every_image_lands_at_its_place_byte_for_byte(source, tmp_path):
    out = unpack_pairs(str(source), tmp_path / "out")
    assert contents(out) == UNPACKED
    write_records(source / "train/images.tfrec", [jpeg(1)] * 3)
    with pytest.raises(DataError, match="record 4: there are not as many images as paths"):
        unpack_pairs(str(source), out)
    assert contents(out) == UNPACKED  # an older folder stays
    (source / "train/paths.tfrec").unlink()
    with pytest.raises(DataError, match=r"missing: train/paths\.tfrec"):
        unpack_pairs(str(source), out)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train/COVID/x.jpeg", r"expected \.\.\./<class>/<name>\.jpeg with a class of normal, pneumonia, opacity"),
        ("train/NORMAL/../x.jpeg", "unsafe name"),
        ("train/NORMAL/C:x\0.jpeg", "unsafe name"),
        ("train/NORMAL//etc/passwd", "expected"),
        ("", "unsafe name"),
        ("train/NORMAL/notes.txt", "expected"),
        ("train/Normal/im-0001-0001.JPEG", r"is the place of .*train/paths\.tfrec: record 1 too"),
        ("train/NORMAL/\udcff.jpeg", "can't decode byte"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused_and_nothing_written(source, tmp_path, path, message):
    write_pair(source, "train", TRAIN | {path: jpeg(9)})
    with pytest.raises(DataError, match=f"train/paths.tfrec: record 5: .*{message}"):
        unpack_pairs(str(source), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "records"]


@pytest.mark.parametrize("strange", ["mine.txt", "train/NORMAL/mine.jpeg", "more/train/mine.jpeg", "", None])
def test_whatever_belongs_to_others_is_never_overwritten(source, tmp_path, strange):
    out = tmp_path / "out"
    if strange:
        unpack_pairs(str(source), out)
        (out / strange).parent.mkdir(parents=True, exist_ok=True)
        (out / strange).write_bytes(b"mine")
    elif strange is None:
        out.mkdir()
        (out / MARKER).write_text(json.dumps(["another program's"]), encoding="utf-8")
    else:
        out.write_bytes(b"mine")
    os.utime(source / "test/paths.tfrec", (1, 1))
    before = contents(tmp_path)
    with pytest.raises(DataError, match="holds files that were not made here"):
        unpack_pairs(str(source), out)
    assert contents(tmp_path) == before | {".out.lock": b""}


# Pairs from a server


@pytest.fixture
def records(remote, source):
    """The pairs behind `remote`, under /chest/."""
    for file in source.rglob("*.tfrec"):
        remote.files[f"chest/{file.parent.name}/{file.name}"] = file.read_bytes()
    return f"{remote.url}/chest"


def test_records_are_fetched_unpacked_and_counted(records, remote, tmp_path, capsys):
    assert main(["data", "--address", records, "--to", "out"]) == 0
    assert contents(tmp_path / "out") == UNPACKED
    said = capsys.readouterr().out
    assert "out: 6 images" in said
    assert "not those of the published images: train/NORMAL 2 (" in said
    assert said.rstrip().endswith(f"Next: make report STUDY=kermany DATA={tmp_path / 'out'}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "out", "records"]
    asked = remote.asked
    assert main(["data", "--address", records, "--to", "out"]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert remote.asked == asked
    for words in (["--from", "nothing"], ["--address", "ftp://x/y"], ["--from", "missing.zip"]):
        assert main(["data", *words, "--to", "other"]) == 1
        assert re.search(f"received '?{words[1]}'?; allowed: ", capsys.readouterr().err)
    download.download("tfrecord", str(tmp_path / "records"), "from a folder")
    assert contents(tmp_path / "from a folder") == UNPACKED


def test_a_page_in_place_of_a_file_is_refused(records, remote, tmp_path):
    remote.files["chest/test/images.tfrec"] = b"<html>Please sign in</html>"
    with pytest.raises(PneumolibError, match=r"images\.tfrec.*record 1 at byte 0.*a TFRecord file is needed"):
        download.download("tfrecord", records, "other")
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".other.download"))  # what came was deleted


def test_a_killed_process_is_resumed_by_the_next(records, remote, tmp_path):
    big = {"train/NORMAL/IM-0001-0001.jpeg": jpeg(1) + os.urandom(3 * 2**20), "PNEUMONIA/person1_virus_1.jpeg": jpeg(2)}
    write_pair(tmp_path / "records", "train", big)
    for name in ("images", "paths"):
        remote.files[f"chest/train/{name}.tfrec"] = (tmp_path / f"records/train/{name}.tfrec").read_bytes()
    remote.stall_at = 2 * 2**20 + 1000
    words = [sys.executable, "-m", "pneumolib", "data", "--address", records, "--to", "out"]
    with subprocess.Popen(words, env=os.environ, cwd=REPO, stderr=subprocess.DEVNULL) as child:
        until = time.monotonic() + 60
        while sum(p.stat().st_size for p in tmp_path.glob(".out.download/train/images.tfrec.*")) < remote.stall_at:
            assert time.monotonic() < until
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    stalled, remote.stall_at = remote.stall_at, None
    remote.released.set()
    download.download("tfrecord", records, "out")
    whole = len(remote.files["chest/train/images.tfrec"])
    assert (f"bytes={stalled}-", '"one"', whole - stalled) in remote.seen
    assert contents(tmp_path / "out")["train/NORMAL/IM-0001-0001.jpeg"] == big["train/NORMAL/IM-0001-0001.jpeg"]


# Words instead of tracebacks


def test_no_network_says_what_was_tried_and_the_other_ways(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert main(["data"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"(?s)tfrecord from gs://.*storage\.googleapis\.com.*refused.*FROM=kaggle.*FROM=<file\.zip>", said)
    assert "Traceback" not in said
    assert not (tmp_path / "data/chest_xray").exists()


# Zip archives

IMAGES = {
    "train/NORMAL/IM-0001-0001.jpeg": jpeg(1),
    "train/PNEUMONIA/person1_virus_1.jpeg": jpeg(2),
    "val/NORMAL/IM-0002-0001.jpeg": jpeg(3),
    "test/PNEUMONIA/person2_virus_2.jpeg": jpeg(4),
}
KAGGLE_LAYOUT = {
    **{f"chest_xray/{place}": body for place, body in IMAGES.items()},
    **{f"chest_xray/chest_xray/{place}": body for place, body in IMAGES.items()},
    **{f"chest_xray/__MACOSX/chest_xray/{place}": b"resource fork" for place in IMAGES},
    **{f"__MACOSX/chest_xray/{place}": b"resource fork" for place in IMAGES},
    "chest_xray/train/NORMAL/._IM-0001-0001.jpeg": b"resource fork",
    "chest_xray/train/.DS_Store": b"",
    "chest_xray/train/NORMAL/.DS_Store": b"",
}


def write_zip(file, members, **options) -> Path:
    """`members`: names, or ZipInfo, to bytes."""
    with zipfile.ZipFile(file, "w", **options) as out:
        for member, body in members.items():
            out.writestr(member, body)
    return file


def test_a_zip_gives_its_outer_copy_and_nothing_else(tmp_path, capsys):
    file = write_zip(tmp_path / "archive.zip", KAGGLE_LAYOUT, compression=zipfile.ZIP_DEFLATED)
    assert main(["data", "--from", str(file)]) == 0
    assert contents(tmp_path / "data/chest_xray") == IMAGES
    assert capsys.readouterr().out.endswith("Next: make report STUDY=kermany\n")
    link = zipfile.ZipInfo("train/NORMAL/link.jpeg")  # becomes a file that is no image
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    others = {"OCT/train/NORMAL/NORMAL-1.jpeg": jpeg(3), link: b"/etc/passwd"}  # a neighbour without both classes
    extract_zip(write_zip(tmp_path / "x.zip", IMAGES | others), tmp_path / "out")
    assert contents(tmp_path / "out") == IMAGES | {"train/NORMAL/link.jpeg": b"/etc/passwd"}
    assert not (tmp_path / "out/train/NORMAL/link.jpeg").is_symlink()


PARTS = st.one_of(
    st.sampled_from(["", ".", "..", "train", "TEST", "val", "NORMAL", "opacity", "__MACOSX", "im-0001-0001.JPEG", "x.jpeg", "C:", "\0", "\x1f"]),
    st.text("ab.:~é ", max_size=4),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(PARTS, PARTS, PARTS, PARTS, st.sampled_from("/\\")), min_size=1, max_size=3))
def test_no_name_leads_out_of_the_folder(names):
    """Every file lands at <split>/<class>/<name>, no two at one place, or the whole archive is refused."""
    members = dict(IMAGES)
    for *parts, separator in names:
        member = zipfile.ZipInfo("x")
        member.filename = separator.join(parts) or "x"  # as an attacker writes it: ZipInfo("a\0b") would be a
        members[member] = jpeg(9)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of names that are there twice
        file = write_zip(Path(folder, "x.zip"), members)
        with contextlib.suppress(DataError):
            extract_zip(file, Path(folder, "out"))
            places = list(contents(Path(folder, "out")))
            assert set(IMAGES) <= set(places)
            assert all(re.fullmatch(r"(train|val|test)/(NORMAL|PNEUMONIA)/[^/\\:]+", place) for place in places)
            assert len({place.casefold() for place in places}) == len(places)
        assert set(os.listdir(folder)) <= {"x.zip", "out"}


def compressed(method: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("train/NORMAL/x.jpeg")
    member.compress_type = method
    return member


TWO = {f"{folder}/{name}": body for folder in "ab" for name, body in IMAGES.items()}


@pytest.mark.parametrize(
    ("members", "limits", "message"),
    [
        (IMAGES | {"train/NORMAL/../../../x.jpeg": b""}, {}, "unsafe name"),
        (IMAGES | {compressed(zipfile.ZIP_BZIP2): jpeg(1)}, {}, "compressed by another method than deflate"),
        (IMAGES | {compressed(zipfile.ZIP_DEFLATED): bytes(2**20)}, {}, r"x\.jpeg: not unpacked: 1048576 bytes"),
        (IMAGES, {"MAX_FILE_BYTES": 100}, "no radiograph"),
        (IMAGES | {"train/normal/im-0001-0001.JPEG": jpeg(9)}, {}, "one image a place is allowed"),
        (IMAGES, {"MAX_TOTAL_BYTES": sum(map(len, IMAGES.values())) - 1}, "images are larger than 1327 bytes"),
        ({"a.txt": b""}, {}, r"looked for one folder with images .* found none"),
        (TWO, {}, r"looked for one folder .* found a and b"),
    ],
)
def test_a_hostile_archive_is_refused_and_nothing_put_in_place(tmp_path, monkeypatch, members, limits, message):
    for name, limit in limits.items():
        monkeypatch.setattr(download, name, limit)
    with pytest.raises(PneumolibError, match=message):
        download.download(str(write_zip(tmp_path / "x.zip", members)), to="out")
    assert {p.name for p in tmp_path.iterdir()} <= {"x.zip", ".out.lock"}


LIST_ENTRY = b"PK\x01\x02"


@pytest.mark.parametrize(("place", "offset", "change", "message"), [
    (lambda raw: raw.index(jpeg(2)), 50, 1, r"person1_virus_1\.jpeg: .*Bad CRC-32"),
    (lambda raw: raw.index(LIST_ENTRY), 8, 1, r"IM-0001-0001\.jpeg: .*encrypted"),
    # The version of the format that a reader would need, 25.5, and a flag that no reader of Python's knows.
    (lambda raw: raw.index(LIST_ENTRY), 6, 255, r"list of members: .*zip file version"),
    (lambda raw: raw.index(LIST_ENTRY), 8, 32, r"IM-0001-0001\.jpeg: .*compressed patched data"),
    # A size that lies: the list says 256 bytes less than come out.
    (lambda raw: raw.rindex(LIST_ENTRY), 25, 1, r"person2_virus_2\.jpeg: not unpacked"),
])  # fmt: skip
def test_one_changed_byte_is_found_and_named(tmp_path, place, offset, change, message):
    file = write_zip(tmp_path / "x.zip", IMAGES)
    raw = bytearray(file.read_bytes())
    raw[place(raw) + offset] ^= change
    file.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        extract_zip(file, tmp_path / "out")


# Kaggle


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / ".kaggle"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize("status", [401, 404, 500])
def test_what_kaggle_answers_becomes_words(remote, monkeypatch, status):
    """The real `kagglehub` asks a server that answers so."""
    endpoints = kagglesdk.kaggle_env._env_to_endpoint
    monkeypatch.setitem(endpoints, kagglesdk.kaggle_env.KaggleEnv.PROD, remote.url)
    remote.statuses = [status]
    with pytest.raises(PneumolibError, match=rf"(?s)kagglehub: {status} .*token \(401, 403\).*/settings/api"):
        download.download("kaggle")
    monkeypatch.setitem(endpoints, kagglesdk.kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:9")
    with pytest.raises(PneumolibError, match=r"(?s)Connection refused.*FROM=<file"):
        download.download("kaggle")


def test_kaggles_cache_is_copied_into_place(monkeypatch, tmp_path):
    cache = tmp_path / "versions/2"
    for name, body in KAGGLE_LAYOUT.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(body)
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(cache))
    with pytest.raises(PneumolibError, match=r"train/NORMAL 2 \(published: 1349\)"):
        download.download("kaggle")  # counted before it is put in place
    assert not (tmp_path / "data/chest_xray").exists()
    download.download("kaggle", "somebody/the-same")
    assert contents(tmp_path / "data/chest_xray") == IMAGES
