"""Downsampling: images/s against a pool of processes that write one PNG a file, and memory.

The photographs are crops of 500 x 375 px, as ImageNet's files are on average, linked under many
names, so that what starting takes weighs little, as in a run over ImageNet. Both sides use the
same number of processes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from pipeline.bench import record

# Size of the task
SIZE = (500, 375)  # px, of the photographs
RESOLUTION = 64
CLASSES = 20


def write_photographs(root: Path, distinct: int, files: int) -> list[Path]:
    """`files` files of `distinct` photographs in root/train/<class>/; their paths."""
    # scikit-image is there for tests and bench only
    from pipeline.bench.photos import crops_of_size

    # Different photographs
    paths: list[Path] = []
    originals = []
    for index, crop in enumerate(crops_of_size(SIZE, distinct)):
        originals.append(root / f"{index}.jpg")
        crop.save(originals[-1], quality=92)
    # Many links to them
    for index in range(files):
        folder = root / "train" / f"c{index % CLASSES:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{index:06d}.JPEG")
        paths[-1].hardlink_to(originals[index % distinct])
    return paths


def loop(kind: str, root: Path, count: int, processes: int) -> float:
    """Images/s of a loop of pipeline/bench/loops.py as a command."""
    with tempfile.TemporaryDirectory() as out:
        words = [kind, str(processes), str(RESOLUTION), str(root / "train"), out]
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "pipeline.bench.loops", *words], check=True)
        return count / (time.monotonic() - start)


def step(root: Path, out: str, processes: int, *more: str) -> list[str]:
    """The step's command line for the photographs in `root`."""
    return [
        *(sys.executable, "-m", "pipeline.downsample", f"out={out}/record.json"),
        *("data.source=train", f"data.dir={root}", f"data.pack_dir={out}"),
        *(f"data.resolution={RESOLUTION}", f"runtime.workers={processes}"),
        *("data.expected_images=null", "data.expected_classes=null", *more),
    ]


def ours(root: Path, count: int, processes: int, *more: str) -> float:
    """Images/s of the whole step as a command, from its start to the pack in place."""
    with tempfile.TemporaryDirectory() as out:
        start = time.monotonic()
        subprocess.run(step(root, out, processes, *more), stdout=subprocess.DEVNULL, check=True)
        return count / (time.monotonic() - start)


def peak_memory(root: Path, processes: int) -> dict[str, float]:
    """Peak resident MB of the step's parent and of its largest worker."""
    # The step on its own
    with tempfile.TemporaryDirectory() as out:
        run = subprocess.Popen(step(root, out, processes), stdout=subprocess.DEVNULL)
        peaks = {"parent": 0.0, "worker": 0.0}
        parent = psutil.Process(run.pid)
        # Until it ends
        while run.poll() is None:
            for role, process in [("parent", parent), *(("worker", c) for c in children(parent))]:
                peaks[role] = max(peaks[role], resident(process))
            time.sleep(0.005)
        if run.returncode:
            raise RuntimeError(f"the step ended with status {run.returncode}")
    return peaks


def children(process: psutil.Process) -> list[psutil.Process]:
    """Child processes; none if it has ended."""
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def resident(process: psutil.Process) -> float:
    """Resident MB of a process; 0 if it has ended."""
    try:
        return float(process.memory_info().rss / 1e6)
    except psutil.NoSuchProcess:
        return 0.0


def memory(root: Path, paths: list[Path], processes: int) -> dict[str, Any]:
    """Peaks with all files, with a quarter of them, and with one photograph of 24 megapixels."""
    # All images
    result: dict[str, Any] = {f"{len(paths)} images": peak_memory(root, processes)}
    # A quarter of them
    for path in paths[len(paths) // 4 :]:
        path.unlink()
    result[f"{len(paths) // 4} images"] = peak_memory(root, processes)
    # One large photograph
    large = Image.open(paths[0]).resize((6000, 4000))
    large.save(paths[0].with_name("large.JPEG"))
    result["and one of 24 megapixels"] = peak_memory(root, processes)
    return result


def run(files: int = 64000, rounds: int = 3, distinct: int = 200) -> dict[str, Any]:
    """Rates in images/s and their ratios, medians over interleaved rounds; memory peaks in MB."""
    # The photographs
    processes = min(8, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = write_photographs(root, distinct, files)
        # Rates in turn
        cases: dict[str, Callable[[], float]] = {
            "png": lambda: loop("png", root, files, processes),
            "bare": lambda: loop("bare", root, files, processes),
            "exact": lambda: ours(root, files, processes),
            "fast": lambda: ours(root, files, processes, "data.recipe=box-fast"),
        }
        rates = record.interleaved(cases, rounds)
        peaks = memory(root, paths, processes)
    # Against the baseline
    title = "downsampling photographs of 500 x 375 px to 64 x 64, files to pack, page cache warm"
    result = record.summary(title, "images/s", rates, baseline="png")
    return result | {
        "files": files,
        "processes": processes,
        "memory_mb": peaks,
        "bars": bars(result["median"], peaks),
    }


def bars(rate: dict[str, float], peaks: dict[str, Any]) -> list[dict[str, Any]]:
    """Every promise with its measured value, and whether it holds."""
    # Without its pixels
    large = peaks["and one of 24 megapixels"]["worker"] - 24 * 8
    worker = max(large, *(p["worker"] for name, p in peaks.items() if "mega" not in name))
    fewer, more = (p["worker"] for name, p in peaks.items() if "mega" not in name)
    # Promises of the step
    return [
        record.bar("exact / png", rate["exact"] / rate["png"], at_least=2.0),
        record.bar("fast / png", rate["fast"] / rate["png"], at_least=3.5),
        record.bar("exact / bare loop", rate["exact"] / rate["bare"], at_least=0.9),
        record.bar("MB a worker beyond 8 bytes a pixel", worker, at_most=300.0),
        record.bar(
            "memory with 4 x the images / with 1 x",
            max(fewer, more) / min(fewer, more),
            at_most=1.1,
        ),
    ]
