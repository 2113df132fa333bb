#!/usr/bin/env bash
# scipy 1.17.1 (PyPI): scipy.optimize.minimize(method="L-BFGS-B"), the first point that it tries.
# Source: lnsrlb, in scipy/optimize/__lbfgsb.c (in the first iteration of a problem without bounds the
# step is 1 / the length of the direction); the documentation does not say it.
#
# L-BFGS knows no curvature at first, so one expects a first step along the gradient that shrinks with
# it: a fit that starts again from its own solution, where the gradient is nearly 0, should stay there.
# What happens: the first trial lies at a distance of 1 from the start, whatever the gradient is and in
# whatever unit the parameters are. If they are of size 0.001 (coefficients, offsets of times), that is
# a thousand times as far away as any point that makes sense, and the objective must bear it. The
# remedy is to divide the parameters by their size.
#
# Minimises half of the squared distance to a point of size 0.001, from 0.001 and from 1e-9 beside it;
# in both cases a step of the gradient itself would end at the minimum. Prints the gradient and how far
# away the first trial was; fails if that is no longer 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check scipy==1.17.1 numpy==2.3.4 2> /dev/null
cat > bowl.py <<'CODE'
import numpy as np
from scipy.optimize import minimize

BEST = 1e-3 * np.array([1.0, -2.0, 0.5])

for beside in (1e-3, 1e-9):
    points = []

    def bowl(x):
        points.append(x.copy())
        return 0.5 * float(np.sum((x - BEST) ** 2)), x - BEST

    minimize(bowl, BEST + beside, jac=True, method="L-BFGS-B", options={"gtol": 0, "ftol": 0})
    distance = float(np.linalg.norm(points[1] - points[0]))
    gradient = float(np.linalg.norm(points[0] - BEST))
    print(f"{beside:g} beside the minimum: gradient {gradient:.1e}, first trial {distance:.4f} away")
    assert abs(distance - 1) < 1e-4, "the first trial is no longer at a distance of 1"
CODE
venv/bin/python bowl.py
