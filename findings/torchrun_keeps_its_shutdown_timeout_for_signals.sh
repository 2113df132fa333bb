#!/usr/bin/env bash
# torch 2.13.0 (from PyPI): torchrun --shutdown-timeout, and a rank that fails.
# Source: torch/distributed/run.py (--shutdown-timeout), torch/distributed/elastic/multiprocessing/
# api.py (SubprocessContext._poll calls close() without it when a rank has failed; its default, 30 s).
#
# The flag is the time between SIGTERM and SIGKILL for ranks that are being stopped. So one expects
# that with --shutdown-timeout=120 a rank which needs 40 s to write its checkpoint after SIGTERM is
# given them, whatever the reason for the stop.
# What happens: that holds if torchrun itself gets a signal. If another rank fails, the ones that are
# left get SIGTERM too, and are killed after 30 s, in the middle of the write: a program that saves
# when it is told to, and was tested with scancel or Ctrl-C, loses its state when it matters most.
#
# Two ranks, twice. Prints what stopped them, and whether rank 0 saved; fails if it saved after the
# failure, or did not after the signal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.4 2> /dev/null
cat > rank.py <<'CODE'
"""Rank 0 takes 40 s to save when it is told to stop; rank 1 fails, if it is to."""

import os
import signal
import sys
import time
from pathlib import Path

name, fails = sys.argv[1], sys.argv[1] == "failure"
ready = Path(f"{name}-ready")


def save(number: int, frame: object) -> None:
    time.sleep(40)
    Path(f"{name}-saved").touch()
    sys.exit(0)


if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, save)
    ready.touch()
elif fails:
    while not ready.exists():
        time.sleep(0.1)
    sys.exit(3)
while True:
    time.sleep(0.1)
CODE
cat > both.py <<'CODE'
import signal
import subprocess
import time
from pathlib import Path

saved = {}
for name in ("signal", "failure"):
    words = ["venv/bin/torchrun", "--standalone", "--nproc-per-node=2", "--shutdown-timeout=120"]
    torchrun = subprocess.Popen([*words, "rank.py", name], stderr=subprocess.DEVNULL)
    while not Path(f"{name}-ready").exists():
        time.sleep(0.1)
    begun = time.monotonic()
    if name == "signal":
        torchrun.send_signal(signal.SIGTERM)
    torchrun.wait()
    saved[name] = Path(f"{name}-saved").exists()
    print(f"stopped by a {name:<8} torchrun left after {time.monotonic() - begun:3.0f} s; rank 0 "
          f"{'saved' if saved[name] else 'was killed before it had saved'}", flush=True)
assert saved["signal"], "after a signal the ranks do not get their time any more"
assert not saved["failure"], "after a failure the ranks get their time now"
CODE
venv/bin/python both.py
