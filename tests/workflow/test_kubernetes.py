"""profiles/kubernetes: the jobs that the plugin makes of each rule, and a run of them.

The plugin, its client and Snakemake are the real ones; the cluster is tests/pods.py.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import ROOT
from tests.pods import Cluster, container_of, kill_pod

PINS = ["-c", "envs/constraints.txt", "-r", "envs/kubernetes.txt"]
STORAGE = next(
    line for line in (ROOT / "envs/kubernetes.txt").read_text().splitlines() if "storage" in line
)
# rsync, if the machine has none: of a file or a folder
RSYNC = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec cp -rLT --preserve=timestamps "$1" "$2"
"""
GPUS = {"reference": "1", "train": "2", "sample": "2", "evaluate": "1"}  # of the experiment tiny


@cache
def installed(folder: Path) -> str:
    """Install the plugins, and what a pod installs, into two folders; the reason if that fails."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    for words in (
        ["install", "--target", folder / "site", *PINS],
        ["download", "--dest", folder / "wheels", *PINS[:2], STORAGE],
    ):
        done = subprocess.run([*pip, *words], text=True, capture_output=True, cwd=ROOT)
        if done.returncode:
            return done.stderr.strip().rpartition("\n")[2]
    return ""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugins in `site`, wheels of one of them, and rsync in `bin`."""
    folder = tmp_path_factory.mktemp("plugins")
    if why := installed(folder):
        pytest.skip(f"NOT TESTED: the plugins cannot be installed: {why}")
    (folder / "bin").mkdir()
    if not shutil.which("rsync"):
        (folder / "bin/rsync").write_text(RSYNC)
        (folder / "bin/rsync").chmod(0o755)
    return folder


class Volume:
    """A volume with a checkout in `work`, and the cluster whose pods see it."""

    def __init__(self, folder: Path, plugins: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        path = os.pathsep.join([str(plugins / "bin"), str(Path(sys.executable).parent)])
        path += os.pathsep + os.environ["PATH"]
        places = {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(plugins / "site")}
        self.image = places | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(plugins / "wheels")}
        (folder / "pods").mkdir()
        self.cluster = Cluster(folder / "pods", self.image)
        subprocess.run(["git", "clone", "-q", ROOT, self.work], check=True)
        shutil.copytree(ROOT, self.work, dirs_exist_ok=True, ignore=LEFT)  # as it is now
        subprocess.run(["git", "add", "--all"], cwd=self.work, check=True)

    def snakemake(self, *more: str) -> subprocess.CompletedProcess[str]:
        """The command of docs/kubernetes.md, with the folders of this volume."""
        places = ["--default-storage-prefix", str(self.work)]
        for whose in ("", "remote-job-"):
            places += [f"--{whose}local-storage-prefix", f"{self.work}/.snakemake/pods"]
        keys = f"data.pack_dir={self.folder}/packs runtime.checkpoint_images=64"
        command = [sys.executable, "-m", "snakemake", "--profile", "profiles/kubernetes"]
        command += ["--container-image", "registry/flow", *places, *more]
        command += ["--seconds-between-status-checks", "1", "--latency-wait", "5"]
        command += ["--config", "experiment=tiny", f"set={keys}"]
        cache_folder = os.environ.get("TORCH_HOME", f"{Path.home()}/.cache/torch")
        variables = {"IMAGENET_DIR": f"{self.folder}/packs", "TORCH_HOME": cache_folder}
        variables["KUBECONFIG"] = str(self.cluster.kubeconfig())
        environment = self.image | variables
        return subprocess.run(
            command, cwd=self.work, env=environment, text=True, capture_output=True, timeout=900
        )


LEFT = shutil.ignore_patterns(".venv", ".git", "results", ".snakemake", "__pycache__", ".*_cache")


@pytest.fixture
def volume(tmp_path: Path, plugins: Path) -> Iterator[Volume]:
    (tmp_path / "packs").mkdir()
    yield (volume := Volume(tmp_path, plugins))
    volume.cluster.server.shutdown()


def rule_of(manifest: dict[str, Any]) -> str:
    """The rule that a Job runs."""
    match = re.search(r"--allowed-rules (\w+)", container_of(manifest)["args"][1])
    assert match
    return match[1]


def check_manifest(manifest: dict[str, Any], volume: Volume) -> None:
    """What a cluster needs to run a rule's job."""
    rule, container = rule_of(manifest), container_of(manifest)
    # Resources, with limits
    requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
    assert limits.get("nvidia.com/gpu") == requests.get("nvidia.com/gpu") == GPUS.get(rule)
    memory = "128000M" if rule == "train" else "16000M"
    assert limits["memory"] == requests["memory"] == memory
    assert limits["ephemeral-storage"] == "10000M"
    asked, most = (int(amounts["cpu"].removesuffix("m")) for amounts in (requests, limits))
    assert asked == int(0.95 * most) and most % 1000 == 0
    # Nodes with GPUs
    pod = manifest["spec"]["template"]["spec"]
    tainted = [toleration["key"] for toleration in pod.get("tolerations", [])]
    assert tainted == (["nvidia.com/gpu"] if rule in GPUS else [])
    # The volume, image and variables
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"workdir": "/workdir", "flow": "/flow"}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"][1:]]
    assert claims == ["flow"] and pod["volumes"][0] == {"name": "workdir", "emptyDir": {}}
    assert (container["image"], container["workingDir"]) == ("registry/flow", "/workdir")
    assert {variable["name"] for variable in container["env"]} == {"IMAGENET_DIR", "TORCH_HOME"}
    assert pod["restartPolicy"] == "Never" and manifest["spec"]["backoffLimit"] == 0


def test_the_image_is_made_of_the_pins() -> None:
    lines = (ROOT / "Containerfile").read_text()
    conda = yaml.safe_load((ROOT / "envs/pipeline.yaml").read_text())["dependencies"]
    (python,) = (line for line in conda if str(line).startswith("python="))
    assert f"FROM docker.io/library/python:{python.removeprefix('python=')}-slim" in lines
    files = set(re.findall(r"-[cr] /(envs/\w+\.txt)", lines)) - {"envs/storage.txt"}
    names = ("constraints", "requirements", "workflow", "kubernetes")
    assert files == {f"envs/{name}.txt" for name in names}
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.slow
def test_every_rule_runs_in_a_pod_and_a_killed_training_goes_on(volume: Volume) -> None:
    """The first pod that trains is killed once it has saved."""
    run = volume.work / "results/tiny/shapes_tiny_8-box"
    # Of the pods: others come and go there, so not all of it can be searched
    checkpoints = Path(f"{volume.work}/.snakemake/pods/fs{run}/train/checkpoints")
    killed: list[str] = []

    def evict(manifest: dict[str, Any], pod: psutil.Popen) -> None:
        if rule_of(manifest) != "train" or killed:
            return
        while not list(checkpoints.glob("*/step*")):
            assert pod.is_running(), volume.cluster.logs()
            time.sleep(0.01)
        killed.append(manifest["metadata"]["name"])
        kill_pod(pod)

    volume.cluster.started = evict
    done = volume.snakemake("--retries", "1")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{volume.cluster.logs()}"
    rules = [rule_of(manifest) for manifest in volume.cluster.manifests]
    assert sorted(rules) == sorted([*GPUS, "downsample", "train", "report"])
    for manifest in volume.cluster.manifests:
        check_manifest(manifest, volume)
    assert killed and "train: resuming from step" in volume.cluster.logs()
    assert (run / "report/summary.txt").read_text() in done.stdout
    again = volume.snakemake("--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
