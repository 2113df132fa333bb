"""Steps of the pipeline as benchmarks run them."""

import subprocess
import sys


def step(name: str, *words: str) -> None:
    """Run a step of the pipeline in a separate process."""
    command = [sys.executable, "-m", f"pipeline.{name}", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
