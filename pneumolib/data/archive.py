"""The archive's layout: which files of a folder or zip are its images, and folders of them that are whole or absent.

Contract: images lie at `<split>/<class>/<name>`, class NORMAL or PNEUMONIA; `pneumolib-data.json` at the top, written
last, says what they were made from and how many they are. A recipe may name a `table` of the images, which lies beside it.
Names and sizes found in archives are never trusted.
"""

import errno
import json
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from filelock import FileLock

from pneumolib.data.progress import bar
from pneumolib.data.sources import CLASS_NAMES, IGNORED, IMAGE_SUFFIXES, SPLITS

MARKER = "pneumolib-data.json"
MADE_BY = "pneumolib.data.archive"
OLD_MARK = "synthetic.json"
DRAWN = "drawn"  # the recipe's key for images that nobody took
MAX_TOTAL_BYTES = 8 * 2**30
MAX_FILE_BYTES = 64 * 2**20  # the largest radiograph of the archive has a few MiB
MAX_MEMBERS = 100_000
MAX_RATIO = 100  # an image is compressed already; a bomb begins at a thousand
_BLOCK = 2**16


class ArchiveError(ValueError):
    """An archive that cannot or must not be unpacked; the message names the member and what was wrong with it."""


def safe_parts(path: str) -> list[str]:
    """`path` cut at / and \\. Raises ArchiveError where it could lead out of the folder it is put in."""
    parts = re.split(r"[/\\]", path)
    if not parts[0] or any(part == ".." or re.search(r"[\0-\x1f\x7f:]", part) for part in parts):
        raise ArchiveError(
            f"{path!r}: unsafe name; relative paths without `..`, colons and control characters are allowed"
        )
    if any(len(os.fsencode(part)) > 255 for part in parts):
        raise ArchiveError(f"{path[:80]!r}...: a part of the name is longer than 255 bytes")
    return parts


def is_image(name: str) -> bool:
    """Whether a file's name is an image's; `._x.jpeg`, as macOS leaves them, is none."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not IGNORED.fullmatch(name)


def refuse_twins(places: Iterable[tuple[str, str]]) -> None:
    """Raise ArchiveError where two of the (origin, place) pairs have one place; `a.jpeg` and `A.jpeg` count as one."""
    seen: dict[str, str] = {}
    for origin, place in places:
        if other := seen.get(place.casefold()):
            raise ArchiveError(f"{origin}: would be written to {place}, as {other} would; one file a place is allowed")
        seen[place.casefold()] = origin


def select_images(names: list[str]) -> dict[str, str]:
    """Where the images among `names` belong: `<split>/<class>/<file>` to name.

    The outermost folder with images of both classes in split folders is taken. Copies nested in it, `__MACOSX` and
    files that are no images are passed over.

    Raises:
        ArchiveError: an unsafe name, no such folder or two beside each other, or two files for one place.
    """
    roots: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for name in names:
        *root, split, folder, file = ["", "", "", *safe_parts(name)]
        if split.lower() in SPLITS and folder.lower() in CLASS_NAMES and is_image(file) and "__MACOSX" not in root:
            place = f"{split.lower()}/{CLASS_NAMES[folder.lower()]}/{file}"
            roots.setdefault(tuple(root), []).append((name, place))
    whole = [root for root, found in roots.items() if len({place.split("/")[1] for _, place in found}) == 2]
    outer = [root for root in whole if len(root) == min(map(len, whole))]
    if len(outer) != 1:
        found = " and ".join("/".join(filter(None, root)) for root in outer) or "none"
        raise ArchiveError(
            f"looked for one folder with images in {{train,val,test}}/{{NORMAL,PNEUMONIA}} among {len(names)} files, "
            f"found {found}"
        )
    refuse_twins(roots[outer[0]])
    return {place: name for name, place in roots[outer[0]]}


def link_images(source: Path, folder: Path) -> None:
    """Put the images of a folder at their places in another: as hard links, as copies where links cannot be.

    Raises ArchiveError as `select_images` does, naming `source`.
    """
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    try:
        chosen = select_images(names)
    except ArchiveError as fault:
        raise ArchiveError(f"{source}: {fault}") from None
    for place, name in bar(chosen.items(), len(chosen), "copying images"):
        target, origin = folder / place, (source / name).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(origin, target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(origin, target)


def extract_zip(file: Path, folder: Path, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
    """Unpack the images of a zip archive to their places in `folder`.

    Bytes are counted as they come out: `max_total_bytes` in all, MAX_FILE_BYTES and MAX_RATIO a member.

    Raises:
        ArchiveError: no zip archive or a broken one, a member with an unsafe name, a link, encrypted, compressed by
            anything but deflate, or larger than allowed; or as `select_images` does.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.orig_filename: member for member in archive.infolist()}
            _refuse_members(archive.infolist())
            chosen = select_images([member.orig_filename for member in archive.infolist()])
            left = max_total_bytes
            for place, name in bar(chosen.items(), len(chosen), "unpacking images"):
                left -= _extract(archive, members[name], folder / place, left)
    except ArchiveError as fault:
        raise ArchiveError(f"{file}: {fault}") from None
    # What `zipfile` raises for a broken list of members; NotImplementedError for a version of the format it cannot read.
    except (zipfile.BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError) as fault:
        raise ArchiveError(f"{file}: no zip archive, or not all of it ({fault}); fetch it again") from None


def _refuse_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise ArchiveError(f"{len(members)} members; at most {MAX_MEMBERS} are allowed")
    for member in members:
        safe_parts(member.orig_filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ArchiveError(f"{member.orig_filename}: a symbolic link; plain files and folders are allowed")
        if member.flag_bits & 1:
            raise ArchiveError(f"{member.orig_filename}: encrypted; unpack the archive by hand")
        # Python reads the other methods without a bound on memory.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = zipfile.compressor_names.get(member.compress_type, member.compress_type)
            raise ArchiveError(f"{member.orig_filename}: compressed by {method}; stored or deflate are allowed")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Write one member and return its size in bytes; `left` bytes may still come out of the archive."""
    target.parent.mkdir(parents=True, exist_ok=True)
    limits = (
        (left, "the archive's images are larger than allowed in all"),
        (MAX_FILE_BYTES, f"larger than {MAX_FILE_BYTES} bytes"),
        (MAX_RATIO * member.compress_size + _BLOCK, f"unpacks to more than {MAX_RATIO} times its size"),
    )
    size = 0
    try:
        with archive.open(member) as source, target.open("xb") as out:
            while block := source.read(_BLOCK):
                size += len(block)
                for limit, what in limits:
                    if size > limit:
                        raise ArchiveError(f"{member.orig_filename}: {what}; this is no archive of radiographs")
                out.write(block)
    # What `zipfile` raises for a broken member; NotImplementedError for patched data or strong encryption.
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError) as fault:
        raise ArchiveError(f"{member.orig_filename}: broken ({fault}); fetch the archive again") from None
    return size


def count_images(folder: Path) -> Counter[str]:
    """Images at `<split>/<class>`, by that key."""
    return Counter("/".join(path.parts[-3:-1]) for path in folder.glob("*/*/*") if is_image(path.name))


def recipe_of(target: Path) -> dict | None:
    """What a whole folder made by `build` was made from; None for any other."""
    marker = _read_marker(target)
    if not marker or count_images(target).total() != marker["n_images"]:
        return None
    table = _table_of(marker)
    return marker["recipe"] if table is None or (target / table).is_file() else None


def is_drawn(folder: Path) -> bool:
    """Whether the images were drawn by `data.synthetic`; the mark goes where the folder is copied.

    The first version left another mark, and its drawings must not pass for patients either.
    """
    return DRAWN in ((_read_marker(folder) or {}).get("recipe") or {}) or (folder / OLD_MARK).is_file()


def build(target: Path, recipe: dict, fill: Callable[[Path], None]) -> None:
    """Have `fill` write images into a folder beside `target`, and move it there when it is whole.

    A target that stands by the same recipe is left as it is, one by another is replaced. Behind a lock, so that two
    processes wait for each other; what an earlier one left when it was killed is cleared away.

    Raises:
        FileExistsError: `target` holds what was not made here; nothing is changed.
        whatever `fill` raises; `target` is then as it was.
    """
    home = target.resolve()
    if recipe_of(home) == recipe:  # asked before the lock too, so that a read-only folder serves
        return
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as fault:  # a file stands where a folder is needed
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder is needed", str(home.parent)) from fault
    with tempfile.TemporaryFile(dir=home.parent):  # a lock that cannot be made would be waited for
        pass
    fresh, old = home.with_name(f".{home.name}.filling"), home.with_name(f".{home.name}.old")
    with FileLock(home.with_name(f".{home.name}.lock")):
        if recipe_of(home) == recipe:
            return
        _refuse_foreign(home)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir()
            fill(fresh)
            marker = {"made_by": MADE_BY, "n_images": count_images(fresh).total(), "recipe": recipe}
            (fresh / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(old, ignore_errors=True)
            if home.exists():  # a folder that is not empty cannot be replaced in one step
                os.replace(home, old)
            os.replace(fresh, home)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _read_marker(target: Path) -> dict | None:
    try:
        found = json.loads((target / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("made_by") == MADE_BY else None


def _refuse_foreign(home: Path) -> None:
    """Raise FileExistsError where `home` holds anything that `build` would not have written, or more of it."""
    marker = _read_marker(home)
    found = [p for p in home.rglob("*") if not p.is_dir()] if home.is_dir() else [home] * home.exists()
    strange = [p for p in found
               if not IGNORED.fullmatch(p.name) and not (marker and _is_ours(p.relative_to(home), _table_of(marker)))]  # fmt: skip
    if strange or (marker and count_images(home).total() > marker["n_images"]):
        what = f"such as {min(strange).name}" if strange else f"more than {marker['n_images']} images"
        raise FileExistsError(f"{home} holds files that were not made here, {what}; nothing was changed")


def _table_of(marker: dict) -> str | None:
    """The name of the table that a recipe says lies beside the marker."""
    return (marker["recipe"] or {}).get("table")


def _is_ours(path: Path, table: str | None) -> bool:
    if str(path) in (MARKER, table):
        return True
    return len(path.parts) == 3 and path.parts[0] in SPLITS and is_image(path.name)
