#!/usr/bin/env bash
# Runs the unit tests of networks, flow, solvers, training, checkpoints and extractors under other
# versions of torch and the torchvision of each, on the CPU, and prints a table:
# envs/try_torch.sh [VERSION ...], by default 2.11.0, 2.13.0 and the newest release ("newest").
#
# For each it makes build/torch-VERSION, an environment that holds both and what they need, and
# takes all other packages from .venv (`make setup`). PIP_FLAGS goes to pip, as in the Makefile: on
# Linux it names the index of torch's CPU builds, or pip takes a CUDA build of several GB.
# Exit status: 0 if all tests passed under every version, else 1.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=.venv/bin/python
TESTS=(
    tests/networks tests/flow tests/compute/test_draws.py
    tests/sampling/test_solvers.py tests/sampling/test_field.py tests/sampling/test_time_grids.py
    tests/training/test_checkpoint.py tests/training/test_compilation.py tests/training/test_ema.py
    tests/training/test_fitting.py tests/training/test_flops.py tests/training/test_host_waits.py
    tests/training/test_learning_rate.py tests/training/test_memory.py
    tests/training/test_precision.py tests/training/test_workload.py tests/scoring/test_extractors.py
)

# Make the environment build/torch-$1 if it is not there.
make_environment() {
    local folder=build/torch-$1 wanted=torch
    [ "$1" = newest ] || wanted=torch==$1
    [ ! -e "$folder/installed" ] || return 0
    "$PYTHON" -m venv --clear "$folder"
    # shellcheck disable=SC2086  # PIP_FLAGS are several words
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_FLAGS:-} \
        "$wanted" torchvision
    # Packages that are not there come from .venv
    "$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth"
    touch "$folder/installed"
}

# Run the tests in build/torch-$1; prints its row of the table.
try_version() {
    local python=build/torch-$1/bin/python log=build/torch-$1/tests.log version status=passed
    version=$("$python" -c 'import torch; print(torch.__version__)')
    "$python" -m pytest -o addopts= -q -m "not slow" "${TESTS[@]}" >"$log" 2>&1 || status=FAILED
    printf '| %s | %s | %s |\n' "$version" "$status" "$(grep -E ' (passed|failed|error)' "$log" | tail -n 1)"
    [ "$status" = passed ]
}

[ -x "$PYTHON" ] || { echo "error: $PYTHON is missing: run \`make setup\` first" >&2; exit 2; }
[ $# -gt 0 ] || set -- 2.11.0 2.13.0 newest
failed=0
for version in "$@"; do
    if make_environment "$version"; then
        try_version "$version" || failed=1
    else
        printf '| %s | FAILED | torch could not be installed |\n' "$version"
        failed=1
    fi
done
exit "$failed"
