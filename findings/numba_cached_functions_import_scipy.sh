#!/usr/bin/env bash
# numba 0.68.1, scipy 1.17.1 (from PyPI): what the first call of a cached function costs a process.
# Source: numba/core/cpu.py (the CPU's registries import numba.np.arraymath at the first call),
# numba/np/arraymath.py (_HAVE_BLAS = _check_blas(), which imports scipy.linalg to see if it is there).
#
# `import numba` is done once, and njit(cache=True) keeps the machine code of a function on the disk.
# So one expects that the first call in a new process loads a few kilobytes and is done: pools of
# worker processes start quickly once the cache is filled.
# What happens: the first call, with a hit in the cache, imports two hundred modules, scipy.linalg
# among them, also for a loop that adds floats and calls no function of numpy. That takes most of the
# time that compiling it took; a profile of imports made before the first call does not show it, and
# each worker process pays it, unless it is forked from one that has called the function.
#
# Prints both processes; fails if a hit in the cache imports no scipy.linalg.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check numba==0.68.1 numpy==2.4.6 scipy==1.17.1
cat > loop.py <<'CODE'
import sys
import time

import numba
import numpy as np


@numba.njit(cache=True)
def total(values):
    result = 0.0
    for value in values:
        result += value
    return result


values, before, start = np.ones(3), set(sys.modules), time.process_time()
total(values)
seconds, new = time.process_time() - start, set(sys.modules) - before
hits = sum(total.stats.cache_hits.values())
print(f"{'hit' if hits else 'miss'} in the cache: {seconds:.2f} s of processor time, "
      f"{len(new)} more modules, scipy.linalg {'is' if 'scipy.linalg' in new else 'is not'} one")
assert hits == int(sys.argv[1]), "the cache is not used as described"
assert "scipy.linalg" in new, "the first call imports no scipy.linalg now"
CODE
venv/bin/python loop.py 0
venv/bin/python loop.py 1
