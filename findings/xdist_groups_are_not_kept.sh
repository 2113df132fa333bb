#!/usr/bin/env bash
# pytest-xdist 3.8.0 beside pytest 9.2.0 (both from PyPI).
#
# Its documentation: with --dist loadgroup, tests that carry one xdist_group mark run in one worker.
# One expects six tests of one group to share the worker, and so what they must not do twice.
# What happens: the mark has no effect and no message. The six run in two workers.
#
# Prints the workers that ran the group; fails if the group is kept together after all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pytest==9.2.0 pytest-xdist==3.8.0
cat > test_group.py <<'TEST'
import os
import pathlib
import time

import pytest

pytestmark = pytest.mark.xdist_group("one")


@pytest.mark.parametrize("number", range(6))
def test_worker(number):
    time.sleep(0.5)
    with pathlib.Path("workers.txt").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
TEST
venv/bin/python -m pytest -n 2 --dist loadgroup -v
workers=$(sort -u workers.txt | tr '\n' ' ')
echo "expected: all six tests of the group in one worker"
echo "found:    they ran in $workers"
[ "$(sort -u workers.txt | wc -l)" = 2 ]
