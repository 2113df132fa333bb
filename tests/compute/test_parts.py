"""Divided tensors are told from whole ones, and nothing imports their class to ask."""

import subprocess
import sys

ASK = """
import sys, torch
import pipeline.flow.workload
from pipeline.compute import parts
tensor = torch.ones(2)
assert not parts.is_part(tensor) and parts.local(tensor) is tensor and parts.full(tensor) is tensor
assert not parts.is_sharded_module(torch.nn.Linear(1, 1))
print("torch.distributed.tensor" in sys.modules, "torch._dynamo" in sys.modules)
"""

DIVIDE = """
import sys, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from pipeline.compute import parts
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net = fully_shard(torch.nn.Linear(3, 2), mesh=init_device_mesh("cpu", (1,)))
assert parts.is_sharded_module(net) and parts.is_part(net.weight)
assert type(parts.local(net.weight)) is torch.Tensor
assert parts.full(net.weight).shape == (2, 3) and not parts.is_part(torch.ones(1))
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asking_imports_nothing() -> None:
    assert python(ASK).split() == ["False", "False"]


def test_divided_ones_are_known() -> None:
    python(DIVIDE)
