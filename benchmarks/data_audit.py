"""What listing, auditing and caching an archive of 5,856 images cost: `make bench`.

The files are the 224 px radiographs of ../shared/data/chest_xray, some of them twice under other numbers to make up the
number, when they are there; drawn ones otherwise. Memory is measured in processes of their own.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pneumolib import audit
from pneumolib.data import border_table, draw_dataset, metadata_features, read_images, read_manifest, split_manifest
from pneumolib.data.manifest import Manifest
from pneumolib.params import DataParams, ImageParams, RunParams

SHARED = Path(__file__).resolve().parents[2] / "shared/data/chest_xray"
FILES = 5856


def make_archive(scratch: Path, n_files: int) -> Path:
    """A folder of `n_files` images in the archive's layout."""
    if not SHARED.is_dir():
        return draw_dataset(scratch / "drawn", n_files)
    files = sorted(SHARED.rglob("*.jpeg"))
    for number in range(n_files):
        file = files[number % len(files)]
        # Past the first round, the same images under numbers that no child of the archive has.
        name = file.name if number < len(files) else f"person{20_000 + number}_virus_{number}.jpeg"
        folder = file.parent if number < len(files) else file.parent.parent / "PNEUMONIA"
        target = scratch / "archive" / folder.relative_to(SHARED) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return scratch / "archive"


def timed(times: dict[str, float], name: str, work: Callable):
    """Call `work`, note its seconds under `name`, hand its result on."""
    began = time.perf_counter()
    result = work()
    times[name] = time.perf_counter() - began
    return result


def audit_times(manifest: Manifest, params: RunParams, scratch: Path) -> dict[str, float]:
    """Seconds of each part of the audit, pixels decoded anew."""
    times: dict[str, float] = {}
    table, seed = manifest.table, params.split.seed
    split = split_manifest(table, params.split)
    timed(times, "groups", lambda: (audit.group_findings(table, split), audit.sensitivity_list(table, split)))
    timed(times, "duplicates", lambda: audit.find_duplicates(table, split))
    features = metadata_features(table)
    timed(times, "each file fact alone", lambda: audit.fact_table(features, split, params.evaluation, seed))
    timed(times, "file facts together", lambda: audit.judge_shortcut(features, split, params.evaluation, seed))
    sets = timed(
        times, "decoding for the border",
        lambda: [read_images(manifest, split, part, params.image, scratch / "pixels") for part in ("train", "val", "test")],
    )  # fmt: skip
    border = timed(times, "reading the border", lambda: border_table(sets))
    timed(times, "border alone",
          lambda: audit.judge_shortcut(border, split, params.evaluation, seed, l2=100))  # fmt: skip
    timed(
        times,
        f"mitigations, {params.audit.mitigation_images} images",
        lambda: audit.mitigation_table(manifest, split, params),
    )
    return times


def peak_memory(root: Path, n_images: int, size_px: int) -> float:
    """Peak MB of a process that lists all images and builds the pixel cache of the first `n_images`."""
    command = [sys.executable, __file__, "--child", str(root), str(n_images), str(size_px)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def child(root: str, n_images: str, size_px: str) -> None:
    """In a process of its own: print its peak in MB; the high-water mark is set back before the cache is built."""
    manifest = read_manifest(DataParams(root=root), Path(root).parent / "cache")
    split = manifest.table.assign(split="train").head(int(n_images))[["image_id", "split", "label", "kind", "group_id"]]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    with tempfile.TemporaryDirectory() as folder:
        if len(split):
            read_images(manifest, split, "train", ImageParams(size_px=int(size_px)), Path(folder))
        status = Path("/proc/self/status").read_text(encoding="ascii")
        print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)


def print_table(heads: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A table in Markdown."""
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.2f}' if isinstance(cell, float) else f'{cell}' for cell in row)} |")


def main() -> None:
    """Print three tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root = make_archive(scratch, options.files)
        params = RunParams(data=DataParams(root=str(root)), image=ImageParams(size_px=224))
        times: dict[str, float] = {}
        for way in ("cold", "warm"):
            manifest = timed(times, f"manifest, {way}", lambda: read_manifest(params.data, scratch / "cache"))
        parts = audit_times(manifest, params, scratch)
        print(f"\n## Listing and audit of {len(manifest.table):,} files, 224 px, {os.cpu_count()} cores\n")
        rows = [*times.items(), *parts.items(), ("**the audit in all**", sum(parts.values()))]
        print_table(("step", "seconds"), rows)
        print("\n## Building the pixel cache at 224 px: peak memory of the process (Linux)\n")
        sizes = [n for n in (0, 500, 2000, options.files) if n <= options.files]
        memory = [(n, peak_memory(root, n, 224), n * 224 * 224 / 2**20) for n in sizes]
        print_table(("images", "peak, MB", "their pixels, MB"), memory)


if __name__ == "__main__":
    main()
