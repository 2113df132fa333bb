"""A group whose process misbehaves as the names of its checks say; named by test_gpu_check."""

import os
import signal
import subprocess
import sys
import time

import torch

from pipeline.bench.gpu_check.check import Check, Figure


def fine(device: torch.device) -> Figure:
    return Figure(1.0, 2.0, "units", note="as ever")


def dies(device: torch.device) -> Figure:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def hangs(device: torch.device) -> Figure:
    time.sleep(600)
    raise AssertionError


def leaves(device: torch.device) -> Figure:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return Figure(0.0, 0.0, "units")


CHECKS = (
    Check("fine", fine, "why"),
    Check("dies", dies, "why"),
    Check("hangs", hangs, "why"),
    Check("leaves", leaves, "why"),
    Check("after", fine, "why"),
    Check("card", fine, "why", "it needs a card"),
)
