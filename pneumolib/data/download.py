"""The real radiographs from where they are published to one folder, `make data`: whole and counted, or not there.

Three ways: the TFRecord files of the Keras example (a public bucket), Kaggle's archive by `kagglehub` with the user's
own account, or a zip archive downloaded by hand. A download is resumed. Every byte of it is verified before the folder gets
its name. Names and sizes found in archives are never trusted.
"""

import itertools
import multiprocessing
import re
import shutil
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import requests
import urllib3

from pneumolib.data.layout import BOUNDED, CLASS_NAMES, IGNORED, bar, build, count_images, place_of, recipe_of
from pneumolib.errors import DataError, PneumolibError, disk_words
from pneumolib.project import in_root
from pneumolib.provenance import text_digest
from pneumolib.text import printable

HANDLE = "paultimothymooney/chest-xray-pneumonia"
DEFAULT_TO = "data/chest_xray"
ADDRESSES = {"tfrecord": "gs://download.tensorflow.org/data/ChestXRay2017/", "kaggle": HANDLE}
# With the images of val counted among train: Kaggle moved 16 there.
PUBLISHED = {"train/NORMAL": 1349, "train/PNEUMONIA": 3883, "test/NORMAL": 234, "test/PNEUMONIA": 390}
CREDIT = (
    "Kermany, Zhang, Goldbaum: Labeled OCT and Chest X-Ray Images for Classification, "
    "Mendeley Data, doi:10.17632/rscbjbr9sj, CC BY 4.0"
)
WAYS = (
    "make data (TFRecord files of the Keras example, from a public bucket; no account), make data FROM=kaggle (Kaggle's "
    f"archive, by kagglehub), make data FROM=<file.zip> (the same, from kaggle.com/datasets/{HANDLE} by a browser)"
)
KAGGLE_HELP = (
    "Kaggle may want a token (401, 403): make one at kaggle.com/settings/api and put it into the variable KAGGLE_API_TOKEN "
    "or the file ~/.kaggle/access_token. ADDRESS=<owner>/<name> names another data set (404). Where the cache is broken, "
    "delete datasets/<owner>/<name> in ~/.cache/kagglehub; the variable KAGGLEHUB_CACHE names a folder on another disk"
)
Pairs = dict[str, tuple[Path, Path]]  # part to files of images and of paths

PAUSES_S = (1, 2, 4)  # between the tries
TIMEOUT_S = (10, 60)  # to connect, between bytes
SLOW_S, SLOWEST_BYTES = 60, 1024  # a server that sends fewer bytes a second for so long is given up
CHUNK_BYTES = 2**20
_GOES_ON = "What came is kept: the same command goes on from there"
AS_IS = {"Accept-Encoding": "identity"}
REFUSALS = {401: "not public", 403: "not public, or no such file", 404: "no such file"}  # another try changes nothing

MAX_TOTAL_BYTES = 8 * 2**30
MAX_FILE_BYTES = 64 * 2**20  # the largest radiograph of the archive has a few MiB
MAX_RATIO = 100  # an image is compressed already; a bomb begins at a thousand


def download(source: str = "tfrecord", address: str | None = None, to: str | Path = DEFAULT_TO) -> Path:
    """Fetch the radiographs into `to`, in the archive's layout, and say what came.

    A folder that an earlier call made whole is left as it is.

    Args:
        source: `tfrecord`, `kaggle`, or a zip archive.
        address: of TFRecord files: gs://bucket/prefix, http(s)://..., or a folder; of Kaggle: a data set's handle.
        to: taken from the project's root when relative.
    Raises:
        PneumolibError: whatever kept the images from being put in place; `to` is as it was.
    """
    target, way = in_root(to), source if source in ADDRESSES else "zip"
    if way == "zip":
        file = Path(source).expanduser().resolve()
        if address or file.suffix != ".zip" or not file.is_file():
            raise PneumolibError(
                f"FROM: received {source!r}; allowed: tfrecord, kaggle, or the path of a .zip file that is there, without an "
                f"ADDRESS. Images in a folder need no download: make report DATA=<folder>"
            )
    address = str(file) if way == "zip" else address or ADDRESSES[way]
    if recipe_of(target):
        print(f"{target} is complete already. To download it anew, delete it or name another folder: TO=...")
    else:
        _put_in_place(way, address, target)
    found = count_images(target)
    wrong = _unlike_published(found)
    print(f"{target}: {found.total()} images", *(f"  {key:16} {found[key]:5}" for key in sorted(found)), sep="\n")
    print("Counts:", f"WARNING: not those of the published images: {wrong}" if wrong else "as published")
    print(f"Source: {CREDIT}")
    print(f"Next: make report STUDY=kermany{'' if target == in_root(DEFAULT_TO) else f' DATA={target}'}")
    return target


def _put_in_place(way: str, address: str, target: Path) -> None:
    def fill(folder: Path) -> None:
        ways = {"tfrecord": _fill_from_pairs, "kaggle": _copy_kaggle, "zip": extract_zip}
        ways[way](address, folder)
        if address == ADDRESSES.get(way) and (wrong := _unlike_published(count_images(folder))):
            raise PneumolibError(f"not the published images: {wrong}. FROM=<file.zip> takes any, downloaded by hand")

    try:
        build(target, {"from": way, "address": address}, fill)
    except (PneumolibError, OSError) as fault:
        raise PneumolibError(
            f"make data, {way} from {address}: stopped.\n{disk_words(fault) or fault}\nNothing was put at {target}. TO= names another folder "
            f"or disk; images in a folder can be used as they are: make report STUDY=kermany DATA=<folder>\n"
            f"All ways to the same images: {WAYS}"
        ) from None


def _unlike_published(found: Counter[str]) -> str:
    """Which counts are not the published ones; whether the 16 images of val are in train makes none less whole."""
    joined = found + Counter({key.replace("val/", "train/"): n for key, n in found.items() if key.startswith("val/")})
    return ", ".join(f"{key} {joined[key]} (published: {n})" for key, n in PUBLISHED.items() if joined[key] != n)


def fetch_pairs(address: str, folder: Path) -> Pairs:
    """Fetch the pairs of TFRecord files below `address`, gs://bucket/prefix or http(s)://..., into `folder`.

    Raises PneumolibError as `fetch` does.
    """
    if not re.match(r"(gs|https?)://[^/]", address):
        raise PneumolibError(f"received {address}; allowed: gs://<bucket>/<folder>, https://... and http://...")
    base = re.sub(r"^gs://", "https://storage.googleapis.com/", address).rstrip("/")
    names = ("images", "paths")
    return {part: tuple(fetch(f"{base}/{part}/{name}.tfrec", folder) for name in names) for part in ("train", "test")}


def fetch(url: str, folder: Path) -> Path:
    """Fetch one file, going on from what an earlier call left of it if the remote file is still the same.

    The file's name ends with a hash of address and edition: parts and files of another edition are never taken up. The size
    is verified here, the content by whoever reads it.

    Args:
        url: of the file.
        folder: where to put it, in a folder named as the last one of the URL.
    Raises:
        PneumolibError: the server's refusal, or no connection after a few tries.
        OSError: what the disk refuses.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return _try_once(url, folder)
        except requests.RequestException as fault:
            status = fault.response.status_code if fault.response is not None else None
            if status in REFUSALS:
                raise PneumolibError(f"{url}: {REFUSALS[status]} ({status}); is the address right?") from None
            reason = f"the server answers {status}" if status else fault
        if pause_s is not None:
            print(f"{url}: {reason}; trying again in {pause_s} s", file=sys.stderr)
            time.sleep(pause_s)
    raise PneumolibError(f"{url}: {reason}; tried {len(PAUSES_S) + 1} times. {_GOES_ON}")


def _ask(method: str, url: str, **options: Any) -> requests.Response:
    """The answer of a server, its headers read. `requests` limits the pause between two bytes and not how long all take."""
    try:
        with ThreadPool(1) as pool:  # its thread, a daemon, is left behind where the time is up
            return pool.apply_async(requests.request, (method, url), options).get(sum(TIMEOUT_S))
    except multiprocessing.TimeoutError:
        raise requests.Timeout(f"no whole answer came in {sum(TIMEOUT_S)} s") from None


def _try_once(url: str, folder: Path) -> Path:
    with _ask("HEAD", url, headers=AS_IS, allow_redirects=True, timeout=TIMEOUT_S) as answer:
        answer.raise_for_status()
        etag, length = answer.headers.get("ETag", "W/"), answer.headers.get("Content-Length", "")
    if not length.isdigit():
        raise PneumolibError(f"{url}: the server tells no length, so a part could not be told from the whole")
    # What tells one edition of the file from another: a strong ETag, else its date.
    size, validator = int(length), answer.headers.get("Last-Modified") if etag.startswith("W/") else etag
    *_, part, name = url.split("/")
    file = folder / part / f"{name}.{text_digest(f'{url} {validator} {size}')}"
    file.parent.mkdir(parents=True, exist_ok=True)
    have = file.stat().st_size if validator and file.is_file() else 0
    if have != size:
        resume = {"Range": f"bytes={have}-", "If-Range": validator} if 0 < have < size else {}
        with _ask("GET", url, headers=AS_IS | resume, stream=True, timeout=TIMEOUT_S) as answer:
            answer.raise_for_status()
            goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            n_chunks = -(-(size - have * goes_on) // CHUNK_BYTES)
            with file.open("ab" if goes_on else "wb") as out:
                for _ in bar(_received(answer.raw, out, url), n_chunks, f"downloading {name}", unit="MiB"):
                    pass
    if (have := file.stat().st_size) != size:
        raise requests.ConnectionError(f"the connection ended at {have} of {size} bytes")
    return file


def _received(raw: urllib3.BaseHTTPResponse, out: BinaryIO, url: str) -> Iterator[None]:
    """Write what comes as soon as it comes, so that not a byte of it is fetched again; a step for each CHUNK_BYTES."""
    came, before, until = 0, 0, time.monotonic() + SLOW_S
    try:
        while piece := raw.read1(CHUNK_BYTES, decode_content=False):
            out.write(piece)
            out.flush()
            came += len(piece)
            yield from [None] * (came // CHUNK_BYTES - (came - len(piece)) // CHUNK_BYTES)
            if time.monotonic() > until:
                if came - before < SLOW_S * SLOWEST_BYTES:
                    slow = f"{url}: {came - before} bytes came in {SLOW_S} s, which is too slow. {_GOES_ON}"
                    raise PneumolibError(slow)
                before, until = came, time.monotonic() + SLOW_S
    except urllib3.exceptions.HTTPError as fault:
        raise requests.ConnectionError(fault) from fault


def _copy_kaggle(handle: str, folder: Path) -> None:
    """The images of a data set that `kagglehub` keeps in its cache, fetched by it where they are not there yet."""
    # Imported here: it takes half a second that the other ways need not wait for.
    import kagglehub

    try:
        source = Path(kagglehub.dataset_download(handle))
    # Broad, because what it raises for an account, an answer, an archive and a disk has no common kind.
    except Exception as fault:
        raise PneumolibError(f"kagglehub: {fault}. {KAGGLE_HELP}") from fault
    chosen = select_images([path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()])
    for place, name in bar(chosen.items(), len(chosen), "copying images"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / place)


def select_images(names: list[str]) -> dict[str, str]:
    """Where the images among `names` belong: `<split>/<class>/<file>` to name.

    The outermost folder with images of both classes in split folders is taken. Copies nested in it, further classes and
    files that are no images are named on stderr.

    Raises:
        DataError: an unsafe name, no such folder or two beside each other, or two files for one place.
    """
    roots: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for name in names:
        if (found := place_of(name)) and "__MACOSX" not in found[0]:
            roots.setdefault(found[0], []).append((name, found[1]))
    whole = [root for root, found in roots.items() if len({place.split("/")[1] for _, place in found}) == 2]
    outer = [root for root in whole if len(root) == min(map(len, whole))]
    if len(outer) != 1:
        found = " and ".join("/".join(filter(None, root)) for root in outer) or "none"
        raise DataError(f"looked for one folder with images in train/NORMAL, train/PNEUMONIA and so on, found {found}")
    places = Counter(place.casefold() for _, place in roots[outer[0]])
    if twice := [place for place, n in places.items() if n > 1]:  # a.jpeg and A.jpeg are one file on some disks
        raise DataError(f"{twice[0]}: two images for this place; one image a place is allowed")
    chosen = {place: name for name, place in roots[outer[0]]}
    taken = {root: {place for _, place in found} <= chosen.keys() for root, found in roots.items() if root != outer[0]}
    copies = [root for root, known in taken.items() if known]
    for root in copies:  # as in Kaggle's archive
        print(f"not taken: {printable('/'.join(filter(None, root)))}, a second copy of the images", file=sys.stderr)
    again = {name for root in copies for name, _ in roots[root]}
    rest = [re.split(r"[/\\]", name) for name in set(names) - set(chosen.values()) - again if not name.endswith("/")]
    rest = Counter("/".join(parts[:-1]) for parts in rest if not any(map(IGNORED.fullmatch, parts)))
    for place, n in sorted(rest.items()):  # on stderr, so that nobody misses a class or a split
        print(f"not taken: {n} file(s) of {printable(place) or 'the archive'}", file=sys.stderr)
    return chosen


def extract_zip(file: str | Path, folder: Path) -> None:
    """Unpack the images of a zip archive to their places in `folder`.

    `zipfile` writes no more bytes of a member than its list of members states, so the limits are asked of that list:
    MAX_TOTAL_BYTES in all, MAX_FILE_BYTES and MAX_RATIO for a member. A link becomes a file that is no image.

    Raises:
        DataError: no zip archive or a broken one, a member with an unsafe name, encrypted, compressed by anything but
            deflate, or larger than allowed; or as `select_images` does.
    """
    name = "list of members"
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.orig_filename: member for member in archive.infolist()}
            chosen = select_images([member.orig_filename for member in archive.infolist()])
            if sum(members[name].file_size for name in chosen.values()) > MAX_TOTAL_BYTES:
                raise DataError(f"its images are larger than {MAX_TOTAL_BYTES} bytes: no archive of radiographs")
            for place, name in bar(chosen.items(), len(chosen), "unpacking images"):
                member = members[name]
                if member.compress_type not in BOUNDED:
                    raise DataError("compressed by another method than deflate")
                if member.file_size > min(MAX_FILE_BYTES, MAX_RATIO * member.compress_size + CHUNK_BYTES):
                    raise DataError(f"{member.file_size} bytes from {member.compress_size}: no radiograph")
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, (folder / place).open("xb") as out:
                    shutil.copyfileobj(source, out)
    # Broad: what `zipfile` raises for broken, encrypted and foreign archives has no common kind.
    except Exception as fault:
        raise DataError(f"{file}: {name}: not unpacked: {fault}") from fault


# --- TFRecord files


def read_records(path: Path) -> Iterator[bytes]:
    """The payloads of a TFRecord file, one in memory at a time.

    The framing is: length (uint64, little-endian), masked CRC32C of those 8 bytes, payload, masked CRC32C of it.

    Raises:
        DataError: a file that ends within a record, a checksum that does not fit, or a record above MAX_FILE_BYTES,
            which is refused before memory is asked for. The message names record (from 1) and byte offset.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            where = f"{path}: record {number} at byte {file.tell()}"
            head = file.read(12)
            if not head:
                return
            length = int.from_bytes(head[:8], "little")
            _require(len(head) == 12, f"{where}: the file ends within the record's head")
            _require(_masked_crc(head[:8]) == head[8:], f"{where}: the checksum of its length does not fit")
            _require(length <= MAX_FILE_BYTES, f"{where}: {length} bytes; at most {MAX_FILE_BYTES} are allowed")
            payload, check = file.read(length), file.read(4)
            _require(len(check) == 4, f"{where}: the file ends within its {length} bytes")
            _require(_masked_crc(payload) == check, f"{where}: the checksum of its {length} bytes does not fit")
            yield payload


def _require(holds: bool, else_said: str) -> None:
    if not holds:
        raise DataError(f"{else_said}. Download the file again; a TFRecord file is needed, and no compressed one")


def _masked_crc(data: bytes) -> bytes:
    """CRC32C, rotated and moved by a constant, so that a CRC over data that holds CRCs stays meaningful."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def unpack_pairs(source: str, target: Path) -> Path:
    """Write the images of `source`'s pairs into `target` in the archive's layout, and return `target`.

    A target that was unpacked from the same address, or from the same files of a folder (by size and time), is returned
    at once. Raises DataError as `write_pairs` does, and where `target` holds what was not unpacked here; and whatever
    `fetch` raises.

    Args:
        source: a folder, or an address as `fetch_pairs` takes it.
        target: the folder to make.
    """
    recipe = {"address": source}
    if "://" not in source:
        files = [file.stat() for pair in find_pairs(Path(source).expanduser()).values() for file in pair]
        recipe = {"tfrecord": [[stat.st_size, stat.st_mtime_ns] for stat in files]}
    return build(target, recipe, lambda folder: _fill_from_pairs(source, folder))


def _fill_from_pairs(source: str, folder: Path) -> None:
    """`write_pairs` from a folder, or from an address by way of another folder beside `folder`, which a killed call leaves."""
    cache = folder.with_suffix(".download")
    pairs = fetch_pairs(source, cache) if "://" in source else find_pairs(Path(source).expanduser())
    try:
        write_pairs(pairs, folder)
    except DataError:
        shutil.rmtree(cache, ignore_errors=True)  # broken: the next call fetches it anew
        raise
    shutil.rmtree(cache, ignore_errors=True)


def find_pairs(source: Path) -> Pairs:
    """The pairs of train and test below `source`. Raises DataError where a file is missing."""
    pairs = {part: (source / part / "images.tfrec", source / part / "paths.tfrec") for part in ("train", "test")}
    if missing := [str(file.relative_to(source)) for pair in pairs.values() for file in pair if not file.is_file()]:
        raise DataError(f"{source}: looked for pairs of images.tfrec and paths.tfrec; missing: {', '.join(missing)}")
    return pairs


def write_pairs(pairs: Pairs, folder: Path) -> None:
    """Write every image to `folder`/<split>/<class>/<name>, byte for byte.

    The split is the path's third-to-last part where that is train, val or test, else the part of the pair.

    Raises:
        DataError: as `read_records` does; a path that is unsafe, of no known class or no image, two images for one
            place, or a pair of unequal length.
    """
    seen = {}
    for part, (images, paths) in pairs.items():
        records = itertools.zip_longest(read_records(images), read_records(paths))
        for number, (image, path) in enumerate(bar(records, None, f"unpacking {part}"), start=1):
            where = f"{paths}: record {number}"
            if image is None or path is None:
                raise DataError(f"{where}: there are not as many images as paths; download both files again")
            try:
                name = re.sub(r"^(\w+:)?/+", "", path.decode("utf-8"))  # where its writer's disk was does not matter
                if (found := place_of(name, part)) is None:
                    names = ", ".join(CLASS_NAMES)
                    raise DataError(f"{name!r}: expected .../<class>/<name>.jpeg with a class of {names}")
            except (DataError, UnicodeDecodeError) as fault:
                raise DataError(f"{where}: {fault}") from None
            place = found[1]
            if other := seen.get(place.casefold()):
                raise DataError(f"{where}: {place} is the place of {other} too; one image a place is allowed")
            seen[place.casefold()] = where
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(image)
