"""`make data`: really cut, really resumed, verified, counted; hostile archives; words for what can go wrong."""

import base64
import contextlib
import errno
import hashlib
import io
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import kagglehub
import kagglesdk.kaggle_env
import pytest
from PIL import Image

from conftest import REPO
from pneumolib.__main__ import main
from pneumolib.data import archive, download
from pneumolib.data.download import extract_zip
from pneumolib.data.layout import build
from pneumolib.errors import DataError, PneumolibError
from test_tfrecord import TEST, TRAIN, contents, jpeg, write_pair

CHUNK = 2**14
BODY = bytes(i * i % 251 for i in range(10 * CHUNK + 5))


class Remote(ThreadingHTTPServer):
    """A server of files in memory, with the faults that servers have.

    `cuts` holds, for the coming answers, after how many bytes the connection ends; `statuses` what they are instead of
    200. `seen` records (path, Range, If-Range, bytes sent).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files, self.headers, self.cuts, self.statuses, self.seen = {}, {"ETag": '"one"'}, [], [], []
        self.honours_range = self.heeds_if_range = self.tells_length = True
        self.stall_at, self.range_limit, self.released = None, None, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.server.statuses.pop(0), b'{"code": 0}', {"Content-Type": "application/json"})

    def do_GET(self):
        remote, body = self.server, self.server.files.get(self.path.removeprefix("/"))
        status, headers, start = 404 if body is None else 200, dict(remote.headers), 0
        if remote.statuses:
            status = remote.statuses.pop(0) or status
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        edition = headers.get("ETag", headers.get("Last-Modified"))
        fresh = not remote.heeds_if_range or condition in (None, edition)
        if wanted and status == 200 and remote.honours_range and fresh:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            status = 206 if start < len(body) else 416
            headers["Content-Range"] = (
                f"bytes {start}-{len(body) - 1}/{len(body)}" if status == 206 else f"bytes */{len(body)}"
            )
        end = start + remote.range_limit if status == 206 and remote.range_limit else None
        self.answer(status, body[start:end] if status in (200, 206) else b"", headers)

    def answer(self, status, body, headers):
        remote = self.server
        cut = remote.cuts.pop(0) if remote.cuts and status in (200, 206) else None
        remote.seen.append((self.path, self.headers["Range"], self.headers["If-Range"], len(body[:cut])))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if remote.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if remote.stall_at is not None and len(body) > remote.stall_at:
                self.wfile.write(body[: remote.stall_at])
                self.wfile.flush()
                remote.released.wait(30)
            else:
                self.wfile.write(body[:cut])
        self.close_connection = cut is not None or not remote.tells_length


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


def get(remote, file, check=lambda path: None) -> bytes:
    download.fetch(f"{remote.url}/x.bin", file, check)
    return file.read_bytes()


# One file


def test_a_cut_connection_goes_on_where_it_was_cut(remote, tmp_path, capsys):
    remote.files["x.bin"], remote.cuts = BODY, [3 * CHUNK, 2 * CHUNK]
    assert get(remote, tmp_path / "x.bin") == BODY
    assert remote.seen == [
        ("/x.bin", None, None, 3 * CHUNK),
        ("/x.bin", f"bytes={3 * CHUNK}-", '"one"', 2 * CHUNK),
        ("/x.bin", f"bytes={5 * CHUNK}-", '"one"', len(BODY) - 5 * CHUNK),
    ]
    assert "trying again in 0 s" in capsys.readouterr().err


def test_a_later_call_goes_on_where_the_tries_ended(remote, tmp_path):
    remote.files["x.bin"], remote.cuts = BODY, [CHUNK] * 4
    with pytest.raises(PneumolibError, match=r"tried 4 times\. What came is kept"):
        get(remote, tmp_path / "x.bin")
    assert not (tmp_path / "x.bin").exists()
    assert get(remote, tmp_path / "x.bin") == BODY
    assert remote.seen[-1][1:] == (f"bytes={4 * CHUNK}-", '"one"', len(BODY) - 4 * CHUNK)


def test_a_server_that_sends_less_than_was_asked_for_is_asked_again(remote, tmp_path):
    remote.files["x.bin"], remote.cuts, remote.range_limit = BODY, [CHUNK], 5 * CHUNK
    assert get(remote, tmp_path / "x.bin") == BODY
    assert [sent for *_, sent in remote.seen] == [CHUNK, 5 * CHUNK, len(BODY) - 6 * CHUNK]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_changed_remote_file_starts_over(remote, tmp_path, heeds_if_range):
    remote.heeds_if_range, remote.files["x.bin"], remote.cuts = heeds_if_range, BODY, [CHUNK] * 4
    with pytest.raises(PneumolibError):
        get(remote, tmp_path / "x.bin")
    remote.files["x.bin"], remote.headers = BODY[::-1], {"ETag": '"two"'}
    assert get(remote, tmp_path / "x.bin") == BODY[::-1]
    assert remote.seen[-1][3] == len(BODY)


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": '"one"', "ignores": "Range"}])
def test_without_range_or_a_strong_validator_it_starts_over(remote, tmp_path, headers):
    remote.honours_range = "ignores" not in headers
    remote.files["x.bin"], remote.headers, remote.cuts = BODY, headers, [5 * CHUNK]
    assert get(remote, tmp_path / "x.bin") == BODY
    assert [sent for *_, sent in remote.seen] == [5 * CHUNK, len(BODY)]


def test_a_date_serves_as_validator(remote, tmp_path):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    remote.files["x.bin"], remote.headers, remote.cuts = BODY, {"Last-Modified": date, "ETag": 'W/"weak"'}, [CHUNK]
    remote.heeds_if_range = False
    assert get(remote, tmp_path / "x.bin") == BODY
    assert remote.seen[-1][1:] == (f"bytes={CHUNK}-", date, len(BODY) - CHUNK)


def hashes(body: bytes) -> dict[str, str]:
    digests = {"crc32c": google_crc32c.Checksum(body).digest(), "md5": hashlib.md5(body).digest()}
    return {name: f"{name}={base64.b64encode(digest).decode()}" for name, digest in digests.items()}


@pytest.mark.parametrize("name", ["crc32c", "md5"])
def test_a_wrong_checksum_deletes_what_came_and_says_so(remote, tmp_path, name):
    remote.files["x.bin"], remote.headers["x-goog-hash"] = BODY, hashes(BODY + b"more")[name]
    with pytest.raises(PneumolibError, match=rf"x\.bin: {name} is .* and not .*deleted"):
        get(remote, tmp_path / "x.bin")
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin.json"]
    remote.headers["x-goog-hash"], remote.cuts = ",".join(hashes(BODY).values()), [CHUNK]
    assert get(remote, tmp_path / "x.bin") == BODY


def test_a_part_that_rotted_on_disk_is_found_by_the_checksum(remote, tmp_path):
    remote.files["x.bin"], remote.headers["x-goog-hash"], remote.cuts = BODY, hashes(BODY)["crc32c"], [CHUNK] * 4
    with pytest.raises(PneumolibError):
        get(remote, tmp_path / "x.bin")
    with (tmp_path / "x.bin.part").open("r+b") as part:
        part.write(b"rot")
    with pytest.raises(PneumolibError, match="crc32c is"):
        get(remote, tmp_path / "x.bin")
    assert get(remote, tmp_path / "x.bin") == BODY


def test_broken_content_never_gets_its_name(remote, tmp_path):
    remote.files["x.bin"] = BODY

    def check(path):
        raise ValueError(f"{path}: broken")

    with pytest.raises(PneumolibError, match=r"broken. What came was deleted"):
        get(remote, tmp_path / "x.bin", check)
    assert not list(tmp_path.glob("x.bin*part"))
    assert not (tmp_path / "x.bin").exists()


def test_a_whole_file_is_asked_for_and_kept_or_replaced(remote, tmp_path):
    remote.files["x.bin"] = BODY
    get(remote, tmp_path / "x.bin")
    assert get(remote, tmp_path / "x.bin") == BODY
    assert remote.seen[-1] == ("/x.bin", f"bytes={len(BODY)}-", '"one"', 0)
    remote.files["x.bin"], remote.headers = b"new", {"ETag": '"two"'}
    assert get(remote, tmp_path / "x.bin") == b"new"


@pytest.mark.parametrize(("status", "words"), [(404, "no such file"), (403, "not public"), (401, "answers 401")])
def test_a_refusal_is_not_repeated(remote, tmp_path, status, words):
    remote.files["x.bin"], remote.statuses = BODY, [status]
    with pytest.raises(PneumolibError, match=words):
        get(remote, tmp_path / "x.bin")
    assert len(remote.seen) == 1


def test_a_busy_server_is_asked_again(remote, tmp_path):
    remote.files["x.bin"], remote.statuses = BODY, [503, 429]
    assert get(remote, tmp_path / "x.bin") == BODY


def test_a_server_that_tells_no_length_is_refused(remote, tmp_path):
    remote.files["x.bin"], remote.tells_length = BODY, False
    with pytest.raises(PneumolibError, match="tells no length"):
        get(remote, tmp_path / "x.bin")


@pytest.mark.parametrize("status", [206, 416])
def test_a_partial_answer_that_nobody_asked_for_is_not_taken(remote, tmp_path, status):
    remote.files["x.bin"], remote.statuses = BODY, [status]
    assert get(remote, tmp_path / "x.bin") == BODY


def test_a_disk_that_refuses_is_named_and_what_came_is_kept(remote, tmp_path):
    remote.files["x.bin"] = BODY
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * CHUNK, hard))
    try:
        with pytest.raises(PneumolibError, match=os.strerror(errno.EFBIG)):
            get(remote, tmp_path / "x.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert get(remote, tmp_path / "x.bin") == BODY
    assert remote.seen[-1][1] == f"bytes={5 * CHUNK}-"


# TFRecord files


@pytest.fixture
def records(remote, tmp_path):
    """The pairs behind `remote`, under /chest/."""
    write_pair(tmp_path / "records", "train", TRAIN)
    write_pair(tmp_path / "records", "test", TEST)
    for file in (tmp_path / "records").rglob("*.tfrec"):
        remote.files[f"chest/{file.parent.name}/{file.name}"] = file.read_bytes()
    return f"{remote.url}/chest"


COUNTS = {"train/NORMAL": 2, "train/PNEUMONIA": 1, "val/PNEUMONIA": 1, "test/NORMAL": 1, "test/PNEUMONIA": 1}


def test_records_are_fetched_unpacked_and_counted(records, remote, tmp_path, capsys):
    assert main(["data", "--address", records, "--to", "out"]) == 0
    assert len(contents(tmp_path / "out")) == 6
    said = capsys.readouterr().out
    for words in (f"{tmp_path / 'out'}: 6 images", "train/NORMAL         2", "not those of the published images"):
        assert words in said
    assert "doi:10.17632/rscbjbr9sj, CC BY 4.0" in said
    assert said.rstrip().endswith(f"Next: make report STUDY=kermany DATA={tmp_path / 'out'}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "out", "records"]
    asked = len(remote.seen)
    assert main(["data", "--address", records, "--to", "out"]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert len(remote.seen) == asked


def test_published_images_are_counted_before_they_are_put_in_place(records, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(download.ADDRESSES, "tfrecord", records)
    with pytest.raises(PneumolibError, match=r"train/NORMAL 2 \(published: 1349\)"):
        download.download()
    assert not (tmp_path / "data/chest_xray").exists()
    monkeypatch.setitem(download.PUBLISHED, "tfrecord", COUNTS)
    download.download()
    said = capsys.readouterr().out
    assert "Counts: as published" in said
    assert said.endswith("Next: make report STUDY=kermany\n")


def test_a_bucket_is_read_over_https_without_an_account(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(download, "download", lambda url, file, check: asked.append(url))
    download.fetch_pairs("gs://download.tensorflow.org/data/ChestXRay2017/", tmp_path / "cache")
    assert asked[0] == "https://storage.googleapis.com/download.tensorflow.org/data/ChestXRay2017/train/paths.tfrec"
    assert len(asked) == 4


def test_pairs_that_lie_there_need_no_network_and_begun_ones_are_asked_again(records, remote, tmp_path):
    folder = download.fetch_pairs(records, tmp_path / "cache")
    asked = len(remote.seen)
    download.fetch_pairs(records, folder)
    assert len(remote.seen) == asked
    (folder / "test/images.tfrec").unlink()
    download.fetch_pairs(records, folder)
    assert [sent for *_, sent in remote.seen[asked:]] == [0, 0, 0, len(remote.files["chest/test/images.tfrec"])]


def test_a_page_in_place_of_a_file_is_not_taken_for_it(records, remote, tmp_path):
    remote.files["chest/test/images.tfrec"] = b"<html>Please sign in</html>"
    with pytest.raises(PneumolibError, match=r"images\.tfrec.*record 1 at byte 0.*is it a TFRecord file"):
        download.download("tfrecord", records, "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_records_serves_as_address(records, tmp_path):
    download.download("tfrecord", str(tmp_path / "records"), "out")
    assert len(contents(tmp_path / "out")) == 6
    (tmp_path / "records/test/paths.tfrec").unlink()
    with pytest.raises(PneumolibError, match=r"missing: test/paths\.tfrec"):
        download.download("tfrecord", str(tmp_path / "records"), "other")


def test_a_folder_of_others_is_refused_before_anything_is_fetched(records, remote, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PneumolibError, match=r"such as mine\.txt.*DATA=.*or name another folder: TO="):
        download.download("tfrecord", records, "out")
    assert remote.seen == []


def test_a_killed_process_is_resumed_by_the_next(records, remote, tmp_path):
    big = {"train/NORMAL/IM-0001-0001.jpeg": jpeg(1) + os.urandom(3 * 2**20), "PNEUMONIA/person1_virus_1.jpeg": jpeg(2)}
    write_pair(tmp_path / "records", "train", big)
    for name in ("images", "paths"):
        remote.files[f"chest/train/{name}.tfrec"] = (tmp_path / f"records/train/{name}.tfrec").read_bytes()
    remote.stall_at = 2 * 2**20 + 1000
    words = [sys.executable, "-m", "pneumolib", "data", "--address", records, "--to", "out"]
    with subprocess.Popen(words, env=os.environ, cwd=REPO, stderr=subprocess.DEVNULL) as child:
        until = time.monotonic() + 20
        while sum(p.stat().st_size for p in tmp_path.glob(".out.download/*/train/images.tfrec.part")) < 2 * 2**20:
            assert time.monotonic() < until
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    remote.stall_at, asked = None, len(remote.seen)
    remote.released.set()
    download.download("tfrecord", records, "out")
    whole = len(remote.files["chest/train/images.tfrec"])
    wanted = ("/chest/train/images.tfrec", f"bytes={2 * 2**20}-", '"one"', whole - 2 * 2**20)
    assert wanted in remote.seen[asked:]
    assert contents(tmp_path / "out")["train/NORMAL/IM-0001-0001.jpeg"] == big["train/NORMAL/IM-0001-0001.jpeg"]


# Words instead of tracebacks


def test_no_network_says_what_was_tried_and_the_other_ways(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert main(["data"]) == 1
    said = capsys.readouterr().err
    for words in ("make data, tfrecord from gs://", "Connection refused", "make data FROM=kaggle", "FROM=<file.zip>"):
        assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "data/chest_xray").exists()


@pytest.mark.parametrize("words", [["--from", "nothing"], ["--address", "ftp://x/y"]])
def test_a_wrong_word_is_answered_with_what_is_allowed(words, capsys):
    assert main(["data", *words]) == 1
    assert re.search(f"received '?{words[1]}'?; allowed: ", capsys.readouterr().err)


def test_an_archive_that_is_missing_and_a_folder_of_images(tmp_path, capsys):
    assert main(["data", "--from", str(tmp_path / "missing.zip")]) == 1
    assert f"no such file: {tmp_path / 'missing.zip'}" in capsys.readouterr().err
    assert main(["data", "--from", str(tmp_path)]) == 1
    assert f"make report DATA={tmp_path}" in capsys.readouterr().err


def test_a_place_where_nothing_can_be_made_is_no_busy_lock(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for place in (tmp_path / "file/x", Path("/proc/x")):
        with pytest.raises(OSError, match=r"folder is needed|No such file|Permission|Operation not permitted"):
            build(place, {}, lambda folder: None)


def test_an_interruption_leaves_with_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch_pairs", interrupt)
    assert main(["data"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_make_hands_its_variables_on():
    done = subprocess.run(
        ["make", "-n", "data", "FROM=a b.zip", "TO=c d"], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert '.venv/bin/python -m pneumolib data --from "a b.zip"  --to "c d"' in done.stdout


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


def test_other_names_of_folders_and_a_neighbour_without_both_classes(tmp_path):
    members = {
        "x/Train/Normal/IM-1-1.jpeg": jpeg(1),
        "x/train/OPACITY/person1_virus_1.jpeg": jpeg(2),
        "OCT/train/NORMAL/NORMAL-1.jpeg": jpeg(3),
        "__MACOSX/train/NORMAL/IM-1-1.jpeg": b"resource fork",
        "__MACOSX/train/OPACITY/person1_virus_1.jpeg": b"resource fork",
    }
    extract_zip(write_zip(tmp_path / "x.zip", members), tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["train/NORMAL/IM-1-1.jpeg", "train/PNEUMONIA/person1_virus_1.jpeg"]


def linked() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("chest_xray/train/NORMAL/link.jpeg")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def compressed(method: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("train/NORMAL/x.jpeg")
    member.compress_type = method
    return member


@pytest.mark.parametrize(
    ("member", "body", "message"),
    [
        ("/train/NORMAL/x.jpeg", b"", "unsafe name"),
        ("train/NORMAL/../../../x.jpeg", b"", "unsafe name"),
        ("..\\train\\NORMAL\\x.jpeg", b"", "unsafe name"),
        ("C:/train/NORMAL/x.jpeg", b"", "unsafe name"),
        ("train/NORMAL/x.jpeg:stream", b"", "unsafe name"),
        ("../elsewhere.txt", b"", "unsafe name"),
        (linked(), b"/etc/passwd", r"link\.jpeg: a symbolic link"),
        (compressed(zipfile.ZIP_BZIP2), jpeg(1), r"x\.jpeg: compressed by bzip2; stored or deflate"),
        (compressed(zipfile.ZIP_DEFLATED), bytes(2**20), r"x\.jpeg: unpacks to more than 100 times its size"),
        ("train/normal/im-0001-0001.JPEG", jpeg(9), "one file a place is allowed"),
        ("other/train/NORMAL/x.jpeg", jpeg(9), None),
    ],
)
def test_a_hostile_member_is_refused_and_nothing_put_in_place(tmp_path, member, body, message):
    file = write_zip(tmp_path / "x.zip", IMAGES | {member: body})
    if message is None:
        download.download(str(file), to="out")
        return
    with pytest.raises(PneumolibError, match=message):
        download.download(str(file), to="out")
    assert {p.name for p in tmp_path.iterdir()} <= {"x.zip", ".out.lock"}


@pytest.mark.parametrize(("name", "limit", "message"), [
    ("MAX_FILE_BYTES", 100, "larger than 100 bytes"),
    ("MAX_MEMBERS", 3, "4 members; at most 3"),
])  # fmt: skip
def test_limits_of_size_and_number(tmp_path, monkeypatch, name, limit, message):
    monkeypatch.setattr(archive, name, limit)
    with pytest.raises(DataError, match=message):
        extract_zip(write_zip(tmp_path / "x.zip", IMAGES), tmp_path / "out")


def test_the_total_is_counted_as_it_comes_out(tmp_path):
    total = sum(map(len, IMAGES.values()))
    file = write_zip(tmp_path / "x.zip", IMAGES)
    extract_zip(file, tmp_path / "enough", max_total_bytes=total)
    with pytest.raises(DataError, match="images are larger than allowed in all"):
        extract_zip(file, tmp_path / "out", max_total_bytes=total - 1)


# Where a byte of an archive is changed: in its list of members, or in the image itself.
LIST_ENTRY = b"PK\x01\x02"


@pytest.mark.parametrize(("place", "offset", "change", "message"), [
    (lambda raw: raw.index(jpeg(2)), 50, 1, r"person1_virus_1\.jpeg: broken \(Bad CRC-32"),
    (lambda raw: raw.index(LIST_ENTRY), 8, 1, r"IM-0001-0001\.jpeg: encrypted"),
    # The version of the format that a reader would need, 25.5, and a flag that no reader of Python's knows.
    (lambda raw: raw.index(LIST_ENTRY), 6, 255, r"x\.zip: no zip archive, or not all of it \(zip file version"),
    (lambda raw: raw.index(LIST_ENTRY), 8, 32, r"IM-0001-0001\.jpeg: broken \(compressed patched data"),
])  # fmt: skip
def test_one_changed_byte_is_found_and_named(tmp_path, place, offset, change, message):
    file = write_zip(tmp_path / "x.zip", IMAGES)
    raw = bytearray(file.read_bytes())
    raw[place(raw) + offset] ^= change
    file.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        extract_zip(file, tmp_path / "out")


def test_a_size_that_lies_is_found(tmp_path):
    """The list says 1 byte; what comes out decides."""
    file = write_zip(tmp_path / "x.zip", IMAGES, compression=zipfile.ZIP_DEFLATED)
    raw = bytearray(file.read_bytes())
    at = raw.rindex(LIST_ENTRY) + 24
    raw[at : at + 4] = (1).to_bytes(4, "little")
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"person2_virus_2\.jpeg: broken"):
        extract_zip(file, tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 40, -10])
def test_a_cut_zip_is_no_archive(tmp_path, keep):
    file = write_zip(tmp_path / "x.zip", IMAGES)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x\.zip: no zip archive, or not all of it"):
        extract_zip(file, tmp_path / "out")


@pytest.mark.parametrize("members", [{"a.txt": b""}, {f"{x}/{n}": b for x in "ab" for n, b in IMAGES.items()}])
def test_none_and_two_data_sets_are_refused(tmp_path, members):
    with pytest.raises(DataError, match=r"looked for one folder with images .* found (none|a and b)"):
        extract_zip(write_zip(tmp_path / "x.zip", members), tmp_path / "out")


# Kaggle


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / ".kaggle"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))


@pytest.mark.usefixtures("no_account")
def test_kaggle_without_network_says_so(monkeypatch, capsys):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert main(["data", "--from", "kaggle"]) == 1
    said = capsys.readouterr().err
    assert "no connection to Kaggle: " in said
    assert "make data FROM=<file.zip>" in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"refuses \(401\).*kaggle\.com/settings/api.*KAGGLE_API_TOKEN.*~/\.kaggle/access_token.*kaggle\.json"),
        (403, r"refuses \(403\): no token was found, or it is not valid"),
        (404, r"knows no data set paultimothymooney/chest-xray-pneumonia \(404\)"),
        (500, "Kaggle answers 500"),
    ],
)
def test_what_kaggle_answers_becomes_words(remote, monkeypatch, status, words):
    """The real `kagglehub` asks a server that answers so."""
    endpoints = kagglesdk.kaggle_env._env_to_endpoint
    monkeypatch.setitem(endpoints, kagglesdk.kaggle_env.KaggleEnv.PROD, remote.url)
    remote.statuses = [status]
    with pytest.raises(PneumolibError, match=words):
        download.download("kaggle")
    assert remote.seen[0][0].endswith("/GetDataset")


@pytest.mark.usefixtures("no_account")
def test_a_wrong_handle_and_a_broken_key_file_are_named(tmp_path):
    with pytest.raises(PneumolibError, match="Invalid dataset handle: nothing"):
        download.download("kaggle", "nothing")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/kaggle.json").write_text("{", encoding="utf-8")
    with pytest.raises(PneumolibError, match=r"Invalid Kaggle credentials file at .*kaggle\.json"):
        download.download("kaggle")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (kagglehub.exceptions.DataCorruptionError("md5"), "broken (md5). Delete datasets/paul"),
        (zipfile.BadZipFile("cut"), "broken (cut). Delete datasets/paul"),
        (kagglehub.exceptions.CredentialError("no JWT"), "no credentials: no JWT. Make a token at"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device. The variable KAGGLEHUB_CACHE"),
        (kagglehub.exceptions.BackendError("mount"), "kagglehub: mount"),
    ],
)
def test_what_kagglehub_raises_becomes_words(monkeypatch, fault, words):
    def raise_it(handle):
        raise fault

    monkeypatch.setattr(kagglehub, "dataset_download", raise_it)
    with pytest.raises(PneumolibError, match=re.escape(words)):
        download.download("kaggle")


def test_kaggles_cache_is_linked_into_place(monkeypatch, tmp_path):
    cache = tmp_path / "versions/2"
    for name, body in KAGGLE_LAYOUT.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(body)
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(cache))
    with pytest.raises(PneumolibError, match=r"train/NORMAL 1 \(published: 1341\)"):
        download.download("kaggle")
    download.download("kaggle", "somebody/the-same")
    out = tmp_path / "data/chest_xray"
    assert contents(out) == IMAGES
    assert os.path.samefile(out / next(iter(IMAGES)), cache / "chest_xray" / next(iter(IMAGES)))
    with Image.open(io.BytesIO(contents(out)[next(iter(IMAGES))])) as image:
        assert image.size == (8, 8)


def test_without_hard_links_the_images_are_copied(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    for place, body in IMAGES.items():
        (tmp_path / "cache" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / place).write_bytes(body)
    monkeypatch.setattr(os, "link", refuse)
    archive.link_images(tmp_path / "cache", tmp_path / "out")
    assert contents(tmp_path / "out") == IMAGES
