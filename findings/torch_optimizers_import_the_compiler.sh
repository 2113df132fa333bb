#!/usr/bin/env bash
# torch 2.13.0 (from PyPI): what making an optimizer imports.
# Source: torch/optim/optimizer.py (add_param_group is decorated with torch._disable_dynamo, step
# imports torch._dynamo), torch/_compile.py (_disable_dynamo imports torch._dynamo at the first call).
#
# torch.compile is lazy: its compiler, torch._dynamo, is imported by the first call of torch.compile.
# So one expects that a program which compiles nothing pays for `import torch` alone, and that what a
# training imports beyond it is its own affair.
# What happens: the constructor of any optimizer, eager ones on a CPU too, imports torch._dynamo with
# sympy: hundreds of modules, and about as many seconds of processor time again as torch itself took.
# A rank of a training pays it at each start and each restart, and a profile of imports made before
# the first optimizer does not show it. TORCHDYNAMO_DISABLE=1 does not change it.
#
# Prints modules and processor seconds before and after; fails if the compiler is not imported.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.4
cat > measure.py <<'CODE'
import sys
import time

import torch


def show(what: str) -> None:
    compiler = "with" if "torch._dynamo" in sys.modules else "without"
    print(f"{what:<24} {len(sys.modules):5} modules, {compiler} the compiler, "
          f"{time.process_time():.1f} s of processor time")


show("import torch")
layer = torch.nn.Linear(2, 1)
layer(torch.ones(1, 2)).sum().backward()
show("a layer, its gradient")
assert "torch._dynamo" not in sys.modules, "the compiler is imported earlier now"
torch.optim.SGD(layer.parameters(), lr=0.1)
show("torch.optim.SGD(...)")
assert "torch._dynamo" in sys.modules, "an optimizer is made without the compiler now"
CODE
venv/bin/python measure.py
TORCHDYNAMO_DISABLE=1 venv/bin/python measure.py
