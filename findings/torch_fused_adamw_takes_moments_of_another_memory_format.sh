#!/usr/bin/env bash
# torch 2.13.0 (from PyPI): AdamW(fused=True) on the CPU, and a state of another memory format.
# Source: torch/optim/optimizer.py (load_state_dict keeps the strides of what is loaded),
# torch/optim/adamw.py and adam.py (_fused_adam hands the tensors to one kernel as they lie).
#
# A training in torch.channels_last saves net.state_dict() and optimizer.state_dict(), and goes on
# in a process that leaves the network in the plain format, or the other way round. Shapes are
# equal, and load_state_dict of both answers without a word. So one expects the next step to be the
# one that the first process would have made: strides are how a tensor lies, not what it says, and
# every other operation of torch (AdamW with fused=False, too) sees to that.
# What happens: the network's weights are copied into its own format; the moments keep theirs; and
# the fused kernel walks through the memory of weight, gradient and moments side by side. Each weight
# is moved by the moments of other weights, without an error or a warning, from the first step on.
#
# One step after loading, fused and not, against the step of the process that went on. Prints the
# largest differences; fails if the fused step is right, or the plain one wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.4 2> /dev/null
cat > both.py <<'CODE'
import copy
import sys

import torch

LR = 1e-2


def made(layout, fused):
    torch.manual_seed(0)
    net = torch.nn.Conv2d(4, 8, 3).to(memory_format=layout)
    return net, torch.optim.AdamW(net.parameters(), lr=LR, fused=fused)


def step(net, optimizer, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 4, 8, 8)
    optimizer.zero_grad()
    net(x).square().mean().backward()
    optimizer.step()


print("torch", torch.__version__)
found = {}
for fused in (False, True):
    first, optimizer = made(torch.channels_last, fused)
    step(first, optimizer, 1)
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    step(first, optimizer, 2)

    second, resumed = made(torch.contiguous_format, fused)
    second.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    step(second, resumed, 2)
    found[fused] = (second.weight - first.weight).abs().max().item() / LR
    name = "fused=True " if fused else "fused=False"
    print(f"{name}: the step after loading is off by {found[fused]:.2g} learning rates")
sys.exit(not (found[True] > 0.1 and found[False] < 1e-3))
CODE
venv/bin/python both.py
