"""Names of files that are not UTF-8, where they are printed."""

import os
import subprocess
import sys

from tests.conftest import ROOT

STEP = r"""
from pipeline.base.errors import run_main
def step(words):
    print("passed over: " + words[0])
run_main(step)
"""


def test_a_step_prints_a_name_that_is_not_utf8() -> None:
    words = [sys.executable, "-c", STEP, b"caf\xe9.txt"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}  # as most locales have it
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"passed over: caf\\udce9.txt\n"), done.stderr
