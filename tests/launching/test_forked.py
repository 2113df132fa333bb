"""Forked ranks are as new processes in what a rank can notice."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from pipeline.steps import ALL
from tests.conftest import ROOT

# What an agent has that a rank must not have: a thread, a file, handlers
AGENT = """
import importlib, os, signal, subprocess, sys, tempfile, threading
from types import SimpleNamespace
import torch
from pipeline.launching import forked

torch.cuda._is_in_bad_fork = lambda: "started CUDA" in sys.argv
threading.Thread(target=threading.Event().wait, daemon=True).start()
kept = tempfile.TemporaryFile()
os.set_inheritable(kept.fileno(), True)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, _: print("the agent's handler", flush=True))
step = SimpleNamespace(module="tests.launching.looking")
importlib.import_module(step.module)
for word in sys.argv[1].split(","):
    print("before", end=" ")  # not to be printed by the fork, too
    command = [sys.executable, "-u", "-m", step.module, word, "--", "$x"]
    rank = forked.Rank(step, command, os.environ | {"RANK": "3"})
    if word == "wait":
        assert rank.poll() is None
        try:
            rank.wait(0.1)
        except subprocess.TimeoutExpired:
            rank.close(signal.SIGTERM)
    print(word, rank.wait(60), rank.poll())
"""


def run(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Python with these words."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | variables,
        input="typed",
        text=True,
        capture_output=True,
        check=False,
        start_new_session=True,
        preexec_fn=hear,
    )


def hear() -> None:
    """Take back what nohup, or a shell that runs the tests in its background, has us ignore."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def test_a_fork_sees_what_a_new_process_sees_and_its_end_is_told() -> None:
    done = run("-c", AGENT, "look,user error,reason,failure,death,wait")
    new = run("-u", "-m", "tests.launching.looking", "look", "--", "$x", RANK="3").stdout
    ends = "before user error 2 2\nbefore reason 1 1\nbefore failure 1 1\n"
    ends += "before death -9 -9\nbefore wait -15 -15\n"
    assert done.stdout == f"before {new}look 0 0\n{ends}"
    # Not in vain
    assert json.loads(new.splitlines()[0])["leads its session"]
    assert new.endswith("the end\n")
    # Its messages
    error, reason, *lines = done.stderr.splitlines()
    assert error == "error: this is wrong: do that"
    assert reason == "error: rank 3 lost another rank"
    assert lines[0].startswith("Traceback") and lines[-1] == "ValueError: unforeseen"


def test_a_fork_of_an_agent_that_has_started_cuda_is_a_new_program() -> None:
    agent = AGENT.replace("[sys.executable,", "['/bin/echo',")
    started = run("-c", agent, "look", "started CUDA").stdout
    assert started == "before -u -m tests.launching.looking look -- $x\nlook 0 0\n"


LISTEN = """
import importlib, os, signal, sys
import torch

calls = []
for module in (torch.cuda, torch.accelerator, torch.xpu):
    for name in ("is_available", "device_count", "current_device", "get_device_properties"):
        def called(*_, name=f"{module.__name__}.{name}", **__):
            calls.append(name)
            return 0
        if hasattr(module, name):
            setattr(module, name, called)
torch.cuda._lazy_init = lambda: calls.append("_lazy_init")
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not calls, calls
assert "torch._dynamo" in sys.modules  # or each rank's first optimizer imports it

# OpenMP's threads would not be in a fork, which would wait for them
if not (fork := os.fork()):
    signal.alarm(60)
    torch.ones(1 << 22).exp()
    os._exit(0)
assert os.waitpid(fork, 0)[1] == 0
"""


def test_imports_of_ranks_start_neither_cuda_nor_threads() -> None:
    names = {name for step in ALL if step.ranked for name in step.imports}
    done = run("-c", LISTEN, *sorted(names), OMP_NUM_THREADS="4")
    assert done.returncode == 0, done.stderr


def test_ranks_start_with_the_module_that_does_their_work() -> None:
    for step in ALL:
        assert bool(step.loop) <= step.ranked
        if step.loop:
            assert callable(import_module(f"pipeline.{step.loop}").work)
            source = Path(str(import_module(step.module).__file__)).read_text()
            assert f"from pipeline.{step.loop} import work" in source
