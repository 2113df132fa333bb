"""Start-up: CPU seconds of the launcher and two ranks until the first training step is done.

The baseline is `import torch` in a new process, which no rank can do without. Beside it stand two
ranks of a script of ten lines under torchrun: what torch alone takes for them, of which the import
of torch._dynamo by its first optimizer is the largest part. Processor time of all processes
together (user and system) hardly depends on what else the machine does.
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


SCRIPT = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
network = DistributedDataParallel(torch.nn.Linear(8, 8))
optimizer = torch.optim.AdamW(network.parameters())
network(torch.randn(4, 8)).square().mean().backward()
optimizer.step()
dist.barrier()
dist.destroy_process_group()
"""
AGENT = ("--standalone", "--nproc-per-node=2")
IMPORT, BARE, OURS = "import torch", "two ranks of a bare script", "two ranks to their first step"


def used_by(*words: str) -> float:
    """CPU seconds of `python` with these words, to its end."""
    before = os.times()
    subprocess.run([sys.executable, *words], check=True)
    after = os.times()
    return after.children_user + after.children_system - sum(before[2:4])


def bare_ranks() -> float:
    """CPU seconds of torchrun and two ranks of SCRIPT, to their end."""
    with TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(SCRIPT)
        return used_by("-m", "torch.distributed.run", *AGENT, str(script))


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
    # All in turn
    with TemporaryDirectory() as folder:
        pack = Path(folder)
        write_pack(pack, photographs(IMAGES)[:, ::8, ::8].copy())
        cases = {
            IMPORT: lambda: used_by("-c", "import torch"),
            BARE: bare_ranks,
            OURS: lambda: first_step(pack, code),
        }
        values = record.interleaved(cases, rounds)
    # Against the baseline
    title = "start-up of a training on the CPU: launcher, agent and two ranks"
    result = record.summary(title, "CPU seconds", values, IMPORT)
    bars = [record.bar("two ranks / import torch", result["ratio"][OURS], at_most=BAR)]
    return result | {"bars": bars}
