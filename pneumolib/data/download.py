"""The real radiographs from where they are published to one folder, `make data`: whole and counted, or not there.

Three ways: the TFRecord files of the Keras example (a public bucket), Kaggle's archive by `kagglehub` with the user's
own account, or a zip archive fetched by hand. What is fetched is resumed, and never taken for whole unverified.
"""

import hashlib
import re
import shutil
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import requests
from filelock import FileLock

from pneumolib.data.archive import ArchiveError, build, count_images, extract_zip, link_images, recipe_of
from pneumolib.data.fetch import DownloadError, explain_connection, explain_disk, fetch
from pneumolib.data.tfrecord import TFRecordError, read_records, write_pairs
from pneumolib.project import in_root

BUCKET = "gs://download.tensorflow.org/data/ChestXRay2017/"
HANDLE = "paultimothymooney/chest-xray-pneumonia"
DEFAULT_TO = "data/chest_xray"
ADDRESSES = {"tfrecord": BUCKET, "kaggle": HANDLE}
PUBLISHED = {  # Kaggle moved 16 images from train to val
    "tfrecord": {"train/NORMAL": 1349, "train/PNEUMONIA": 3883, "test/NORMAL": 234, "test/PNEUMONIA": 390},
    "kaggle": {"train/NORMAL": 1341, "train/PNEUMONIA": 3875, "val/NORMAL": 8, "val/PNEUMONIA": 8,
               "test/NORMAL": 234, "test/PNEUMONIA": 390},
}  # fmt: skip
CREDIT = (
    "Kermany, Zhang, Goldbaum: Labeled OCT and Chest X-Ray Images for Classification, "
    "Mendeley Data, doi:10.17632/rscbjbr9sj, CC BY 4.0"
)
WAYS = {
    "tfrecord": "make data                      TFRecord files of the Keras example, from a public bucket; no account",
    "kaggle": "make data FROM=kaggle          Kaggle's archive, by kagglehub",
    "zip": f"make data FROM=<file.zip>      the same, fetched with a browser from kaggle.com/datasets/{HANDLE}",
}
TOKEN_HELP = (
    "Make a token at kaggle.com/settings/api and put it into the variable KAGGLE_API_TOKEN or the file "
    "~/.kaggle/access_token. An older key is read as well: KAGGLE_USERNAME and KAGGLE_KEY, or ~/.kaggle/kaggle.json"
)
FILES = [f"{part}/{name}.tfrec" for part in ("train", "test") for name in ("paths", "images")]


def download(source: str = "tfrecord", address: str | None = None, to: str | Path = DEFAULT_TO) -> Path:
    """Fetch the radiographs into `to`, in the archive's layout, and say what came.

    A folder that an earlier call made whole is left as it is.

    Args:
        source: `tfrecord`, `kaggle`, or a zip archive.
        address: of TFRecord files: gs://bucket/prefix, http(s)://..., or a folder; of Kaggle: a data set's handle.
        to: taken from the project's root when relative.
    Raises:
        DownloadError: whatever kept the images from being put in place; `to` is as it was.
    """
    target, way = in_root(Path(to).expanduser()), source if source in ADDRESSES else "zip"
    if way == "zip":
        address = str(_find_zip(source, address))
    address = address or ADDRESSES[way]
    if made := recipe_of(target):
        made_from = made.get("address", "TFRecord files")
        print(
            f"{target} is complete already, from {made_from}. To fetch anew, delete it or name another folder: TO=..."
        )
    else:
        _put_in_place(way, address, target)
    _report(target)
    return target


def _find_zip(source: str, address: str | None) -> Path:
    file = Path(source).expanduser().resolve()
    if file.is_dir():
        raise DownloadError(
            f"FROM: {source} is a folder; images that are there already need no fetching: make report DATA={source}"
        )
    if address or file.suffix != ".zip":
        raise DownloadError(
            f"FROM: received {source!r}{f' with ADDRESS={address}' if address else ''}; allowed: tfrecord, kaggle "
            f"(both with an ADDRESS or without), or the path of a .zip file (without)"
        )
    if not file.is_file():
        raise DownloadError(f"FROM: no such file: {file}")
    return file


def _put_in_place(way: str, address: str, target: Path) -> None:
    cache = target.with_name(f".{target.name}.download")
    key = hashlib.sha256(address.encode()).hexdigest()[:16]  # files of one address never meet those of another

    def fill(folder: Path) -> None:
        if way == "tfrecord":
            write_pairs(fetch_pairs(address, cache / key) if "://" in address else Path(address).expanduser(), folder)
        elif way == "kaggle":
            link_images(_fetch_kaggle(address), folder)
        else:
            extract_zip(Path(address), folder)
        if address == ADDRESSES.get(way):
            _check_counts(count_images(folder), PUBLISHED[way])

    try:
        build(target, {"from": way, "address": address}, fill)
    except FileExistsError as fault:
        raise DownloadError(
            f"{fault}. Use them as they are: make report STUDY=kermany DATA={target}, or name another folder: TO=..."
        ) from None
    except (DownloadError, ArchiveError, TFRecordError, OSError) as fault:
        reason = f"{fault.filename or target}: {explain_disk(fault)}" if isinstance(fault, OSError) else fault
        others = "\n".join(f"  {command}" for name, command in WAYS.items() if name != way)
        raise DownloadError(
            f"make data, {way} from {address}: stopped.\n{reason}\nNothing was put at {target}. Other ways to the "
            f"same images:\n{others}"
        ) from None
    shutil.rmtree(cache, ignore_errors=True)


def _check_counts(found: Counter[str], published: dict[str, int]) -> None:
    """Refuse other counts than the published; whether the 16 images of val stand in train makes none less whole."""
    if found not in PUBLISHED.values():
        wrong = [f"{key} {found[key]} (published: {published.get(key, 0)})" for key in sorted(found | published)
                 if found[key] != published.get(key, 0)]  # fmt: skip
        raise DownloadError(
            f"the images are not those that are published: {', '.join(wrong)}. To take them all the same, fetch them "
            f"by hand and name where they are: ADDRESS=<folder> for TFRecord files, FROM=<file.zip>"
        )


def _report(target: Path) -> None:
    found, default = count_images(target), target == in_root(DEFAULT_TO)
    print(f"{target}: {found.total()} images")
    for key in sorted(found):
        print(f"  {key:16} {found[key]:5}")
    as_published = (
        "as published" if found in PUBLISHED.values() else "WARNING: not those of the published images, which are 5856"
    )
    print(f"Counts: {as_published}")
    print(f"Source: {CREDIT}")
    print(f"Next: make report STUDY=kermany{'' if default else f' DATA={target}'}")


def fetch_pairs(address: str, folder: Path) -> Path:
    """Fetch the pairs of TFRecord files below `address`, gs://bucket/prefix or http(s)://..., and return `folder`.

    These are those of train and test, as the Keras example publishes them; a pair of val is read from a folder only.

    Where all lie there already, nothing is asked of the network; where some do, each is asked whether it still is the
    same, so that images never meet the paths of another edition. Raises DownloadError as `fetch` does.
    """
    if not re.match(r"(gs|https?)://[^/]", address):
        raise DownloadError(f"received {address}; allowed: gs://<bucket>/<folder>, https://... and http://...")
    base = re.sub(r"^gs://", "https://storage.googleapis.com/", address).rstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not all((folder / name).is_file() for name in FILES):
            for name in FILES:
                fetch(f"{base}/{name}", folder / name, _check_records)
    return folder


def _check_records(file: Path) -> None:
    """Raise TFRecordError where a checksum does not fit: not every server publishes one of the whole file."""
    for _ in read_records(file):
        pass


def _fetch_kaggle(handle: str) -> Path:
    """The folder in `kagglehub`'s cache that holds the data set, fetched by it where it is not there yet."""
    # Imported here: it takes half a second that the other ways need not wait for.
    import kagglehub
    from kagglehub import exceptions

    try:
        return Path(kagglehub.dataset_download(handle))
    except requests.HTTPError as fault:
        status = fault.response.status_code if fault.response is not None else 0
        raise DownloadError(_explain_kaggle(handle, status)) from None
    except requests.RequestException as fault:
        raise DownloadError(f"no connection to Kaggle: {explain_connection(fault)}") from None
    except OSError as fault:
        raise DownloadError(f"{fault}. The variable KAGGLEHUB_CACHE names a folder on another disk") from None
    except (exceptions.DataCorruptionError, zipfile.BadZipFile, zlib.error, EOFError) as fault:
        raise DownloadError(
            f"what Kaggle sent is broken ({fault}). Delete datasets/{handle} in ~/.cache/kagglehub (or in the folder "
            f"that KAGGLEHUB_CACHE names), and run the same command again"
        ) from None
    except exceptions.CredentialError as fault:
        raise DownloadError(f"no credentials: {fault}. {TOKEN_HELP}") from None
    # Of Kaggle's and Colab's own notebooks; ValueError for a handle or a credentials file that it cannot read.
    except (exceptions.BackendError, exceptions.KaggleEnvironmentError, exceptions.ColabEnvironmentError,
            exceptions.NotFoundError, ValueError) as fault:  # fmt: skip
        raise DownloadError(f"kagglehub: {fault}") from None


def _explain_kaggle(handle: str, status: int) -> str:
    if status in (401, 403):
        return f"Kaggle refuses ({status}): no token was found, or it is not valid. {TOKEN_HELP}"
    if status == 404:
        return f"Kaggle knows no data set {handle} (404); ADDRESS=<owner>/<name> names another"
    return f"Kaggle answers {status}; try again later"
