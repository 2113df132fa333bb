#!/usr/bin/env bash
# diffusers 0.35.1 (PyPI): DDIMScheduler(timestep_spacing="trailing"), steps between its timesteps.
# Source: DDIMScheduler.step, in diffusers/schedulers/scheduling_ddim.py: prev_timestep is timestep -
# num_train_timesteps // num_inference_steps, whatever stands in scheduler.timesteps. The spacings of
# "trailing" are rounded, not cut (Lin et al. 2024, arXiv 2305.08891, table 2). The scheduler of the
# Large Concept Model, made from this one, escapes it by chance: torch.arange with dtype=torch.long
# cuts the spacing as well, so that 40 steps of 100 levels become 50, each of 2 levels.
#
# One expects that a step from scheduler.timesteps[k] gives a sample of the noise level
# scheduler.timesteps[k + 1], at which the loop asks the network next. What happens if the number of
# steps does not divide that of levels: the step ends at a noisier level, the network is told the
# next one of the list, and since each step starts from what the one before left, the excess grows:
# near the image a sample has several times the noise that the network is told. No error, no warning,
# no limit but the last step, which shows the network's estimate. The remedy is to choose a divisor,
# or to step to the next entry of the list.
#
# Takes steps by an estimator that knows the image, so that a sample is signal * image + noise *
# normals with known factors; prints how often the noise differs from that of the level that is told,
# and the largest quotient; fails if it no longer differs, or differs with a divisor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.35.1 \
  "huggingface-hub<1" numpy==2.3.4 2> /dev/null
cat > levels.py <<'CODE'
import torch
from diffusers import DDIMScheduler


def excesses(num_steps):
    scheduler = DDIMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True,
        timestep_spacing="trailing", prediction_type="sample", clip_sample=False,
    )
    scheduler.set_timesteps(num_steps)
    noises = (1 - scheduler.alphas_cumprod.double()).sqrt()
    image, x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()  # parts: signal and noise
    levels, quotients = scheduler.timesteps.tolist(), []
    for level, told in zip(levels, levels[1:]):
        x = scheduler.step(image, level, x).prev_sample
        quotients.append(float(x[1] / noises[told]))
    return [q for q in quotients if abs(q - 1) > 1e-3]


for num_steps in (40, 20):
    wrong = excesses(num_steps)
    most = f", up to {max(wrong):.2f} times as much" if wrong else ""
    print(f"{num_steps} steps of 100 levels: {len(wrong)} samples have another noise than is told{most}")
    assert bool(wrong) == (num_steps == 40), "it changed"
CODE
venv/bin/python levels.py
