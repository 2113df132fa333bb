"""Pretended machines on this one: network namespaces with names and addresses of their own.

As root, `with nodes(2) as words:` makes the hosts tn1, tn2 at 10.77.0.1, .2 on a bridge (this side
is .254); `words(1)` stand before a command that is to run on tn1. Nothing of them stays.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NET = "10.77.0"
BRIDGE = "tbr0"
CARD = "eth0"  # of each machine


def missing() -> str:
    """What is missing for pretended machines; empty where nothing is."""
    if os.geteuid() != 0:
        return "root"
    return next((tool for tool in ("ip", "nsenter", "unshare") if not shutil.which(tool)), "")


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def nodes(count: int, folder: Path) -> Iterator[Callable[[int], list[str]]]:
    """`count` machines; yields what gives the words before a command on one of them.

    A command sees the machine's own name and address, and a hosts file with those of all.
    """
    hosts = folder / "hosts"
    known = [f"127.0.0.1 localhost\n{NET}.254 {socket.gethostname()}\n"]
    known += [f"{NET}.{k} tn{k}\n" for k in range(1, count + 1)]
    hosts.write_text("".join(known))
    remove(count)
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{NET}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for k in range(1, count + 1):
            add(k)
        yield lambda k: inside(k, hosts)
    finally:
        remove(count)


def add(k: int) -> None:
    """Machine tn<k> with one network card on the bridge."""
    ip("netns", "add", f"tn{k}")
    ip("link", "add", f"tv{k}", "type", "veth", "peer", "name", CARD, "netns", f"tn{k}")
    ip("link", "set", f"tv{k}", "master", BRIDGE, "up")
    ip("-n", f"tn{k}", "addr", "add", f"{NET}.{k}/24", "dev", CARD)
    ip("-n", f"tn{k}", "link", "set", CARD, "up")
    ip("-n", f"tn{k}", "link", "set", "lo", "up")


def inside(k: int, hosts: Path) -> list[str]:
    """Words before a command that runs on tn<k>. `ip netns exec` would hide /sys/fs/cgroup."""
    script = 'mount --bind "$1" /etc/hosts; hostname "$0"; shift; exec "$@"'
    enter = ["nsenter", f"--net=/run/netns/tn{k}", "unshare", "--uts", "--mount"]
    return [*enter, "sh", "-c", script, f"tn{k}", str(hosts)]


def pids(k: int) -> list[int]:
    """Processes on tn<k>."""
    found = subprocess.run(["ip", "netns", "pids", f"tn{k}"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def power_off(k: int) -> None:
    """SIGKILL to all that runs on tn<k>."""
    for pid in pids(k):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove(count: int) -> None:
    """Take the machines away, with all that runs on them."""
    for k in range(1, count + 1):
        power_off(k)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", f"tv{k}")  # by itself it would go some time after the machine
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", f"tn{k}")
    with suppress(subprocess.CalledProcessError):
        ip("link", "del", BRIDGE)
