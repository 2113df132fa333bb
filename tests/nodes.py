"""Pretended machines on this one: network namespaces with names and addresses of their own.

As root, `with nodes(2, folder) as words:` makes the hosts tn1, tn2 at 10.77.0.1, .2 on a bridge
(this side is .254); `words(1)` stand before a command that is to run on tn1. Nothing of them stays.
Those of another `network` than 77 can be there at the same time.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NETWORK = 77  # its hosts are 10.77.0.*
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
def nodes(count: int, folder: Path, network: int = NETWORK) -> Iterator[Callable[[int], list[str]]]:
    """`count` machines; yields what gives the words before a command on one of them.

    A command sees the machine's own name and address, and a hosts file with those of all.
    """
    hosts = folder / "hosts"
    known = [f"127.0.0.1 localhost\n10.{network}.0.254 {socket.gethostname()}\n"]
    known += [f"10.{network}.0.{k} tn{k}\n" for k in range(1, count + 1)]
    hosts.write_text("".join(known))
    remove(count, network)
    try:
        ip("link", "add", bridge(network), "type", "bridge")
        ip("addr", "add", f"10.{network}.0.254/24", "dev", bridge(network))
        ip("link", "set", bridge(network), "up")
        for k in range(1, count + 1):
            add(k, network)
        yield lambda k: inside(k, hosts, network)
    finally:
        remove(count, network)


def bridge(network: int) -> str:
    """The bridge between the machines of a network."""
    return f"tbr{network}"


def place(k: int, network: int) -> str:
    """The network namespace that is machine tn<k>."""
    return f"tn{k}-{network}"


def add(k: int, network: int) -> None:
    """Machine tn<k> with one network card on the bridge."""
    name, cable = place(k, network), f"tv{k}-{network}"
    ip("netns", "add", name)
    ip("link", "add", cable, "type", "veth", "peer", "name", CARD, "netns", name)
    ip("link", "set", cable, "master", bridge(network), "up")
    ip("-n", name, "addr", "add", f"10.{network}.0.{k}/24", "dev", CARD)
    ip("-n", name, "link", "set", CARD, "up")
    ip("-n", name, "link", "set", "lo", "up")


def inside(k: int, hosts: Path, network: int) -> list[str]:
    """Words before a command that runs on tn<k>. `ip netns exec` would hide /sys/fs/cgroup."""
    script = 'mount --bind "$1" /etc/hosts; hostname "$0"; shift; exec "$@"'
    enter = ["nsenter", f"--net=/run/netns/{place(k, network)}", "unshare", "--uts", "--mount"]
    return [*enter, "sh", "-c", script, f"tn{k}", str(hosts)]


def pids(k: int, network: int) -> list[int]:
    """Processes on tn<k>."""
    words = ["ip", "netns", "pids", place(k, network)]
    found = subprocess.run(words, capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def power_off(k: int, network: int) -> None:
    """SIGKILL to all that runs on tn<k>."""
    for pid in pids(k, network):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove(count: int, network: int) -> None:
    """Take the machines away, with all that runs on them."""
    for k in range(1, count + 1):
        power_off(k, network)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", f"tv{k}-{network}")  # else it goes some time after the machine
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", place(k, network))
    with suppress(subprocess.CalledProcessError):
        ip("link", "del", bridge(network))
