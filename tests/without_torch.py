"""A step's preflight in a process that cannot load torch: the launcher's part of every start."""

import subprocess
import sys

from tests.conftest import ROOT

CODE = """
import importlib, sys
sys.modules["torch"] = None
step = importlib.import_module(sys.argv[1])
from pipeline.base import files
from pipeline.config.load import load_step
files.sha256_file = None
step.preflight(*load_step(sys.argv[2:], step.STEP.words), 2)
"""


def preflight(step: str, *words: str) -> None:
    """Check the words of `step`; fails if it loads torch or hashes a file of weights."""
    subprocess.run([sys.executable, "-c", CODE, f"pipeline.{step}", *words], cwd=ROOT, check=True)
