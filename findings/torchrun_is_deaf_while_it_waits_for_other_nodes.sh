#!/usr/bin/env bash
# torch 2.13.0 (from PyPI): torchrun on several nodes, and SIGTERM.
#
# Schedulers send SIGTERM to all nodes of a job at its time limit or when they preempt it. One expects
# that a torchrun passes it on, or leaves; and that one whose processes have all ended with 0 says 0.
# What happens: a torchrun whose processes have ended waits for those of the other nodes (up to 300 s)
# inside C++, and no Python handler runs there. The signal is seen when the other node is done. Then
# it counts after all: SignalException, a traceback and exit status 1, though every process of every
# node has succeeded. A scheduler calls the finished job failed, and may run it again.
#
# Two torchruns on this machine: rank 0 ends at once, rank 1 after 15 s; SIGTERM goes to the torchrun of
# rank 0 once that rank is gone. Prints how long it takes it to leave, and the exit statuses; fails if
# it leaves within 5 s or says 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.4
cat > job.py <<'CODE'
import os
import pathlib
import time

rank = os.environ["RANK"]
pathlib.Path(f"agent-of-{rank}.new").write_text(str(os.getppid()))
os.rename(f"agent-of-{rank}.new", f"agent-of-{rank}")
if rank == "1":
    time.sleep(15)
CODE
cat > both.py <<'CODE'
import pathlib
import signal
import socket
import subprocess
import time

with socket.create_server(("localhost", 0)) as free:
    port = free.getsockname()[1]
words = ["venv/bin/torchrun", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=one"]
words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "job.py"]
with open("printed", "w") as printed:
    both = [subprocess.Popen(words, stdout=printed, stderr=printed) for _ in range(2)]
files = [pathlib.Path(f"agent-of-{rank}") for rank in (0, 1)]
while not all(file.exists() for file in files):
    time.sleep(0.1)
first, second = sorted(both, key=lambda agent: str(agent.pid) != files[0].read_text())
children = pathlib.Path(f"/proc/{first.pid}/task/{first.pid}/children")
while children.read_text().strip():
    time.sleep(0.1)
time.sleep(1)
first.send_signal(signal.SIGTERM)
began = time.monotonic()
statuses = [first.wait(60)]
seconds = time.monotonic() - began
statuses.append(second.wait(60))
print(f"torchrun of rank 0, its work done: exit status {statuses[0]}, {seconds:.0f} s after SIGTERM")
print(f"torchrun of rank 1: exit status {statuses[1]}")
traceback = "SignalException" in pathlib.Path("printed").read_text()
print("SignalException in what they printed:", traceback)
assert seconds > 5 and statuses[0] != 0 and statuses[1] == 0 and traceback
CODE
venv/bin/python -c 'import torch; print("torch", torch.__version__)'
PATH="$folder/venv/bin:$PATH" venv/bin/python both.py
