#!/usr/bin/env bash
# torch 2.13.0 (from PyPI): torchrun, and the arguments of the program that it starts.
# Source: torch/distributed/launcher and torch/distributed/elastic/agent/server/local_elastic_agent.py
# (macros.substitute), torch/distributed/run.py (the parser's REMAINDER).
#
# All words behind the program's name belong to the program, as behind python, mpirun or srun, so one
# expects that they reach it as they are typed: a password or a prompt with $$ in it, a pattern, a
# first -- that ends the program's own options. Quoting for the shell is then all that is needed.
# What happens: each word passes through Python's string.Template on its way, so that $$ becomes $ and
# ${local_rank} the rank, and the parser of torchrun keeps a first -- for itself. No line says so, and
# the program runs with other arguments.
#
# Prints the words that were typed and those that arrived; fails if they have become equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.4
cat > program.py <<'CODE'
import json
import sys

print("arrived", json.dumps(sys.argv[1:]))
CODE
cat > typed.py <<'CODE'
import json
import subprocess
import sys

words = ["--", "price=5$$", "name=run-${local_rank}", "plain"]
ways = {
    "python": [sys.executable, "program.py"],
    "torchrun": ["venv/bin/torchrun", "--standalone", "--nproc-per-node=1", "program.py"],
}
print("typed            ", json.dumps(words))
for name, way in ways.items():
    done = subprocess.run([*way, *words], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("arrived ")]
    arrived = json.loads(line.removeprefix("arrived "))
    print(f"{name:<8} hands on", json.dumps(arrived))
    assert name != "python" or arrived == words
    changed = {"torchrun": ["price=5$", "name=run-0", "plain"]}
    assert name == "python" or arrived == changed[name], "torchrun behaves in another way now"
CODE
venv/bin/python typed.py
