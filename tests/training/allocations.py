"""Memory of tensors, as torch's profiler saw it."""

from torch.profiler import profile


def most_allocated(measured: profile) -> int:
    """Most bytes of tensors at a time, beyond those that were there before."""
    total = most = 0
    for event in measured.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most
