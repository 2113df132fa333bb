"""Averages of a power-function profile: any of them is a sum of a few that were stored.

After n images such an average weights the weights at time τ by τ^γ (Karras et al. 2024,
arXiv 2312.02696, section 3 and appendix C). Its width is the standard deviation of that profile as
a share of n. Averages of other widths, stored now and then, span nearly all profiles: the sum that
comes nearest to the wanted one is a system of linear equations, whose terms are inner products.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Profile:
    """How much the weights at each time of the training count in an average."""

    width: float  # above 0, at most WIDEST
    images: int  # seen when the average was taken

    @property
    def gamma(self) -> float:
        """The exponent."""
        return exponent(self.width)


def exponent(width: float) -> float:
    """The exponent γ, above 0, of a relative `width`, which is above 0 and at most WIDEST.

    width² = (γ+1) / ((γ+2)² (γ+3)) is a cubic equation in γ + 2, whose largest root it is.
    """
    roots = np.roots([width**2, width**2, -1, 1])
    return float(roots.real.max()) - 2


def decay(width: float, images: int, batch: int) -> float:
    """Weight of the old average after a step of `batch` images that ended at `images`."""
    return float((1 - batch / images) ** (exponent(width) + 1))


def inner_products(first: list[Profile], second: list[Profile]) -> np.ndarray:
    """Integrals over time of each profile of `first` times each of `second`, (F,S)."""
    # Both as a table
    gammas = np.array([p.gamma for p in first])[:, None], np.array([p.gamma for p in second])[None]
    times = np.array([p.images for p in first])[:, None], np.array([p.images for p in second])[None]

    # Both are there until the earlier one ends
    earlier, later = np.minimum(*times), np.maximum(*times)
    later_gamma = np.where(times[0] > times[1], *gammas)
    scale = (gammas[0] + 1) * (gammas[1] + 1) / (gammas[0] + gammas[1] + 1)
    result: np.ndarray = scale * (earlier / later) ** later_gamma / later
    return result


def coefficients(stored: list[Profile], wanted: Profile) -> np.ndarray:
    """Weights (S,) float64, of sum 1, of the stored averages that come nearest to a wanted one.

    If several sums come as near, as with many widths, the shortest: it blows up no rounding.
    """
    products, wanted_products = inner_products(stored, stored), inner_products(stored, [wanted])
    result: np.ndarray = np.linalg.lstsq(products, wanted_products[:, 0], rcond=None)[0]
    return result / result.sum()


def mismatch(stored: list[Profile], weights: np.ndarray, wanted: Profile) -> float:
    """Distance of the sum's profile from the wanted one, as a share of the wanted one's length."""
    squared = inner_products([wanted], [wanted])[0, 0]
    both = inner_products(stored, [wanted])[:, 0]
    square = squared - 2 * weights @ both + weights @ inner_products(stored, stored) @ weights
    return float(np.sqrt(max(square, 0.0) / squared))
