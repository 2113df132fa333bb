"""Start-up: CPU seconds of the launcher and two ranks until the first training step is done.

The baseline is `import torch` in a new process, which no rank can do without. Processor time of all
processes together (user and system) hardly depends on what else the machine does.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from pipeline.bench import record
from pipeline.bench.loader import photographs, write_pack

# Length of the training
IMAGES = 64
BAR = 4.0  # times the CPU seconds of `import torch`
WORDS = (
    "experiment=tiny", "train.batch=12", "train.images=120000", "runtime.log_images=12",
    "runtime.progress_seconds=1000", "runtime.device=cpu",
)  # fmt: skip


def import_torch() -> float:
    """CPU seconds of a process that imports torch."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    after = os.times()
    return after.children_user + after.children_system - sum(before[2:4])


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process, its living descendants, and those that they have waited for."""
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        total += sum(member.cpu_times()[:4])
    return total


def first_step(pack: Path, code: Path = record.ROOT) -> float:
    """CPU seconds from the launcher's start to the first row of the curve of two ranks.

    `code`: the checkout that is run.
    """
    with TemporaryDirectory() as folder:
        # The launcher, two ranks
        command = [sys.executable, "-m", "pipeline.launch", "--gpus", "2", "--threads", "2"]
        command += ["--", "-m", "pipeline.train", *WORDS, f"data.path={pack}", f"out={folder}"]
        process = psutil.Popen(command, cwd=code, stdout=subprocess.DEVNULL)
        # Until its first row
        try:
            while not any(p.stat().st_size for p in Path(folder).glob("checkpoints/*/metrics.*")):
                if process.poll() is not None:
                    raise RuntimeError(f"the training ended with status {process.returncode}")
                time.sleep(0.01)
            return cpu_seconds(process)
        finally:
            process.terminate()
            process.wait()


def run(rounds: int = 3, code: Path = record.ROOT) -> dict[str, Any]:
    """The result (see pipeline.bench.record)."""
    # Both in turn
    with TemporaryDirectory() as folder:
        pack = Path(folder)
        write_pack(pack, photographs(IMAGES)[:, ::8, ::8].copy())
        cases = {
            "import torch": import_torch,
            "two ranks to their first step": lambda: first_step(pack, code),
        }
        values = record.interleaved(cases, rounds)
    # Against the baseline
    title = "start-up of a training on the CPU: launcher, agent and two ranks"
    result = record.summary(title, "CPU seconds", values, "import torch")
    ratio = result["ratio"]["two ranks to their first step"]
    return result | {"bars": [record.bar("two ranks / import torch", ratio, at_most=BAR)]}
