"""Tokens that jump from masks to values: the sampler of discrete flows (Gat et al. 2024).

In a step from t to t + h every place of an image draws a value x1 from the network's prediction and
then jumps at most once: to x1 at the rate (1 + c) kappa' / (1 - kappa), or back to the mask at the
rate c kappa' / kappa, with kappa = t^n. Without c(t) masks open and hardly anything else happens.
With it, values are hidden and drawn anew, at rates under which the distribution of the path stays
as it is (their alpha = 1 + c and beta = c; arXiv 2407.15595, corrector sampling).

Every draw is a function of (seed, index of the image, number of the step, place): an image does not
know its batch. What may differ is a draw within rounding of a threshold.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import draws, execution
from pipeline.config.model_keys import DiscreteUNetKeys
from pipeline.config.schema import Sample
from pipeline.flow import mixture_path
from pipeline.flow.tokens import pixels_of
from pipeline.sampling.field import Field


def divergence_free(kind: str | float, t: float) -> float:
    """c(t) of sample.divergence_free: 0, 12 t^2 (1 - t)^0.25, or a constant."""
    if kind == "none":
        return 0.0
    return 12 * t**2 * (1 - t) ** 0.25 if kind == "symmetric" else float(kind)


def rates(
    x: Tensor, x1: Tensor, t: float, exponent: float, c: float, mask: int
) -> tuple[Tensor, Tensor]:
    """Rates float64 of jumps from tokens x to the drawn x1, and back to the mask, at t < 1.

    At time 0 all tokens are masks, and none can go back.
    """
    opening = float(mixture_path.speed(torch.tensor(t, dtype=torch.float64), exponent))
    hiding = c * exponent / t if t > 0 else 0.0  # kappa' / kappa = n / t
    return (x != x1).double() * ((1 + c) * opening), (x != mask).double() * hiding


def jump_probability(forth: Tensor, back: Tensor, step: float) -> Tensor:
    """Probability of a jump within `step` at these rates: 1 - e^(-step rate)."""
    return -torch.expm1(-step * (forth + back))


def drawn(logits: Tensor, uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """A category int64 (…) for logits (…,K) by uniforms float64 (…) in (0,1).

    The inverse of the cumulative distribution in `dtype`, float32 or float64; the uniform is cut to
    the bits of it. A category of probability 0 never comes.
    """
    cumulative = logits.to(dtype).softmax(dim=-1).cumsum(dim=-1).contiguous()
    bits = 24 if dtype == torch.float32 else 53
    share = ((uniform * 2**bits).floor() * 2.0**-bits).to(dtype).unsqueeze(-1)
    found = torch.searchsorted(cumulative, share * cumulative[..., -1:], right=True)
    return found.squeeze(-1).clamp(max=logits.shape[-1] - 1)


class Jumps(Field):
    """The tokens (B,3,H,W) of a batch of images; counts the evaluations of networks for each.

    Guidance mixes logits, l_none + guidance (l_class - l_none): the normalised product of powers of
    both predictions (Schiff et al. 2024, arXiv 2412.10193). The guided rates of Nisonoff et al.
    2024 (arXiv 2406.01572) are this without the normalisation, which also changes how fast masks
    open; here every time keeps the share of masks that the network has seen at it.
    """

    def __init__(
        self,
        sample: Sample,
        networks: tuple[nn.Module, nn.Module | None],
        labels: Tensor,
        no_class: int | None,
        model: DiscreteUNetKeys,
        exponent: float,
        seed: int,
        index: Tensor,
    ) -> None:
        """`index` (B,) int64: of the images, by which they draw; `exponent`: n of the training."""
        super().__init__(sample, networks[0], labels, no_class, networks[1])
        self.model, self.exponent = model, exponent
        self.seed, self.index = seed, index
        self.steps = 0  # taken
        self.dtype = torch.float64 if sample.categorical == "float64" else torch.float32

    def start(self, resolution: int) -> Tensor:
        """All masks."""
        shape = (len(self.index), 3, resolution, resolution)
        return torch.full(shape, self.model.mask, device=self.index.device)

    def solve(self, x: Tensor, times: Tensor) -> Tensor:
        """The tokens at times[-1] after those at times[0], where the last call has ended.

        Raises ArithmeticError if logits are not finite.
        """
        rows = torch.arange(len(x), device=x.device)
        finite = torch.ones((), dtype=torch.bool, device=x.device)
        for t, t_next in pairwise(times.tolist()):
            logits = self(x, torch.full((len(x),), t, device=x.device), rows)
            finite &= logits.isfinite().all()
            x = self.step(x, logits, t, t_next)
        if not finite:
            raise ArithmeticError(
                "its logits are not finite: take weights from before the training failed, or "
                "another sample.precision"
            )
        return x

    def step(self, x: Tensor, logits: Tensor, t: float, t_next: float) -> Tensor:
        """The tokens at t_next after x at t, for the guided logits (B,3,H,W,V) of x."""
        # A value for each place; never the mask
        shape = tuple(x.shape[1:])
        which, when = draws.double_uniforms(
            self.seed, draws.SAMPLE_TOKENS, self.index, shape, self.steps
        )
        self.steps += 1
        values = logits[..., : self.model.values] / self.sample.temperature
        x1 = drawn(values, which, self.dtype)
        if t_next == 1:
            return x1

        # A jump to it, back to the mask, or none
        c = divergence_free(self.sample.divergence_free, t)
        forth, back = rates(x, x1, t, self.exponent, c, self.model.mask)
        jump = jump_probability(forth, back, t_next - t)
        share = forth / (forth + back).clamp(min=math.ulp(0.0))
        target = torch.where(when < jump * share, x1, self.model.mask)
        return torch.where(when < jump, target, x)

    def evaluate(self, net: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Logits float32 (B,3,H,W,V) by one network, computed in sample.precision."""
        with execution.autocast(self.sample.precision, x.device):
            logits: Tensor = net(x, t, labels)
        return logits.float()

    def pixels(self, x: Tensor) -> np.ndarray:
        """Tokens (B,3,H,W) as images uint8 (B,H,W,3) in host memory; masks are grey."""
        return pixels_of(x, self.model.values).permute(0, 2, 3, 1).contiguous().cpu().numpy()
