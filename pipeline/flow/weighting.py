"""The training loss of a denoiser, as a weighted loss of the velocity that it means.

At time t the noise level is sigma = (1 - t) / t and D - x1 = (1 - t) (v - (x1 - x0)) for the
denoiser D of a velocity v. So the denoiser's weight lambda = (sigma² + d²) / (sigma d)² for images
of standard deviation d (Karras et al. 2022, table 1) is (1 - t)² / d² + t² for a squared error of
the velocity: finite at both ends.
"""

from torch import Tensor

from pipeline.flow import probability_path


def velocity_weight(t: Tensor, sigma_data: float) -> Tensor:
    """lambda (1 - t)² (B,), the weight of squared errors of the velocity at times t (B,)."""
    return (1 - t).square() / sigma_data**2 + t.square()


def denoising_loss(
    velocity: Tensor,
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    sigma_data: float,
    uncertainty: Tensor | None = None,
) -> Tensor:
    """Mean of lambda / e^u |D - x1|² + u over pixels and images: a float32 scalar.

    velocity, x0, x1 (B,3,H,W); t (B,) in [0,1]; `uncertainty` u (B,) or None, which is 0. A learned
    u becomes the logarithm of the weighted error at each noise level (Karras et al. 2024), so
    that all levels count alike.
    """
    error = (velocity.float() - probability_path.target_velocity(x0, x1)).square().mean((1, 2, 3))
    weighted = velocity_weight(t, sigma_data) * error
    if uncertainty is None:
        return weighted.mean()
    return (weighted / uncertainty.exp() + uncertainty).mean()
