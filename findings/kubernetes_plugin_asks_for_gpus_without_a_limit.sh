#!/usr/bin/env bash
# snakemake-executor-plugin-kubernetes 0.5.1 (PyPI): the Job that it makes of a rule with `gpu`.
#
# One expects that `resources: gpu=1, gpu_manufacturer="nvidia"`, which is all that the plugin's own
# errors ask for, gives a pod that a cluster takes. What happens: the GPU stands in the container's
# requests alone. Kubernetes takes no request for a GPU without an equal limit ("you cannot specify GPU
# requests without specifying limits": its page "Schedule GPUs"; its API server answers "Limit must be
# set for non overcommitable resources"). Limits come with the resource `scale=0` alone, whose default
# is 1 and which no error names; CPU, memory and disk then get limits too.
#
# Runs the plugin's `run_job` with a client that keeps the Job instead of sending it. Prints requests
# and limits without and with scale=0; fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check snakemake-executor-plugin-kubernetes==0.5.1 kubernetes==32.0.1
cat > submit.py <<'CODE'
import logging
from threading import Lock
from types import SimpleNamespace

from snakemake_executor_plugin_kubernetes import Executor


def resources(**asked):
    """Requests and limits of the container of a job with these resources."""
    sent = []
    client = SimpleNamespace(create_namespaced_job=lambda namespace, body: sent.append(body))
    executor = Executor.__new__(Executor)  # its constructor would look for a cluster
    vars(executor).update(
        batchapi=client, namespace="default", container_image="image", run_namespace="run",
        persistent_volumes=[], secret_envvars={}, k8s_cpu_scalar=0.95, privileged=False,
        k8s_service_account_name=None, logger=logging.getLogger(), lock=Lock(),
        format_job_exec=lambda job: "true", report_job_submission=lambda info: None,
    )
    job = SimpleNamespace(resources=asked, jobid=1, attempt=1, is_containerized=False)
    executor.run_job(job)
    return sent[0].spec.template.spec.containers[0].resources


asked = {"_cores": 4, "mem_mb": 1000, "gpu": 1, "gpu_manufacturer": "nvidia"}
plain, unscaled = resources(**asked), resources(**asked, scale=0)
for name, found in (("default", plain), ("scale=0", unscaled)):
    print(f"{name}: requests {found.requests}, limits {found.limits}")
assert plain.requests["nvidia.com/gpu"] == "1" and plain.limits is None
assert unscaled.limits["nvidia.com/gpu"] == unscaled.requests["nvidia.com/gpu"] == "1"
CODE
venv/bin/python submit.py
