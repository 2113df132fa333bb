"""Features and sums of scoring on a device, against the CPU and numpy.

What scoring needs is imported by the checks, since torch-fidelity and its networks may be missing.
"""

from functools import partial

import numpy as np
import torch
from torch import nn

from pipeline.bench.gpu_check.check import Check, Figure, NotApplicable
from pipeline.bench.gpu_check.networks import relative
from pipeline.compute.distributed import Ranks

CPU = torch.device("cpu")
SIZE, NUM = 32, 16  # px, images
FEATURES, WIDTH, LOGITS, CLASSES, SPLITS = 600, 384, 50, 5, 4


def photographs() -> np.ndarray:
    """Random images uint8 (NUM,SIZE,SIZE,3)."""
    return np.random.default_rng(0).integers(0, 256, (NUM, SIZE, SIZE, 3), np.uint8)


def features(name: str, device: torch.device) -> Figure:
    """Features of an extractor's published network, TF32 having been on before it was loaded."""
    from pipeline.scoring.extractors import load_extractor
    from pipeline.scoring.kinds import KINDS

    if not KINDS[name].present():
        raise NotApplicable(f"the weights of {name} are not at hand, and none are fetched here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    ours, right = (load_extractor(name, None, d).features(photographs()) for d in (device, CPU))
    kept = ours[0].dtype == torch.float32
    note = "float32" if kept else f"{ours[0].dtype}"
    return Figure(relative(ours[0].cpu().double(), right[0].double()), 2e-4, "relative", note=note)


def transformer(device: torch.device) -> Figure:
    """DINOv2's network with random weights, which needs no file."""
    from pipeline.scoring.dinov2 import DinoV2

    torch.manual_seed(0)
    net = DinoV2(WIDTH).eval().requires_grad_(False)
    nn.init.normal_(net.pos_embed, std=0.1)
    pixels = torch.randn(4, 3, 224, 224)
    right = net(pixels).double()
    ours = net.to(device)(pixels.to(device)).cpu().double()
    return Figure(relative(ours, right), 2e-4, "relative")


def sums(device: torch.device) -> Figure:
    """Mean, covariance, class means and Inception score of random features, batch by batch."""
    from pipeline.scoring.keepers import Batch, ClassMeans, InceptionScore, Moments

    # Batch by batch
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(FEATURES, WIDTH)).astype(np.float32) * 3 + 1
    logits = rng.normal(size=(FEATURES, LOGITS)).astype(np.float32)
    labels = np.arange(FEATURES, dtype=np.int64) % CLASSES
    moments, means = Moments(WIDTH, device), ClassMeans(labels, CLASSES, WIDTH, device)
    score = InceptionScore(FEATURES, LOGITS, SPLITS, 0, device)
    for rows in np.array_split(np.arange(FEATURES), 7):
        batch = Batch(rows, *(torch.from_numpy(x[rows]).to(device) for x in (drawn, logits)))
        for keeper in (moments, means, score):
            keeper.add(batch)
    for keeper in (moments, means, score):
        keeper.finish(Ranks(0, 1, device))
    # All at once
    ours = (moments.mu, moments.sigma, means.means.cpu().numpy(), np.array(score.score()))
    right = (*statistics(drawn.astype(np.float64), labels), inception_score(logits))
    pairs = zip(ours, right, strict=True)
    most = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
    return Figure(most, 1e-10, "relative")


def statistics(
    features: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance and class means of features (N,D) float64."""
    means = np.stack([features[labels == label].mean(0) for label in range(CLASSES)])
    return features.mean(0), np.cov(features.T), means


def inception_score(logits: np.ndarray) -> np.ndarray:
    """Mean and deviation over parts of a permutation (Salimans et al. 2016), float64."""
    order = np.random.RandomState(0).permutation(len(logits))
    p = np.exp(logits.astype(np.float64)[order])
    p /= p.sum(1, keepdims=True)
    parts = np.array_split(p, SPLITS)
    values = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts]
    return np.array([np.mean(values), np.std(values)])


ROUNDING = "float32 sums are off by 1e-5 at most; TF32 would be 1e-3"
CHECKS = (
    *(
        Check(f"features of {name}", partial(features, name), ROUNDING)
        for name in ("efficientnet-lite0", "inception-v3-compat")
    ),
    Check("DINOv2's network", transformer, ROUNDING),
    Check("sums of features", sums, "sums are float64"),
)
