"""The real images of a pack, with which a benchmark compares samples."""

import numpy as np

from pipeline.data.pack import Pack
from pipeline.scoring.extractors import Extractor
from pipeline.scoring.keepers import Batch, ClassMeans, Hits, Keeper, Moments
from pipeline.scoring.scores import Gaussian

TOGETHER = 50  # images at once


class Real:
    """The real side of a comparison: moments and class means of the features of a pack."""

    def __init__(self, extractor: Extractor, pack: Pack, num_classes: int) -> None:
        self.extractor = extractor
        moments = Moments(extractor.width, extractor.device)
        labels = np.asarray(pack.labels)
        means = ClassMeans(labels, num_classes, extractor.width, extractor.device)
        self.show(np.asarray(pack.images), moments, means)
        self.gaussian, self.means = Gaussian(moments.mu, moments.sigma), means.means

    def show(self, images: np.ndarray, *keepers: Keeper) -> None:
        """Show the features of images to keepers."""
        for start in range(0, len(images), TOGETHER):
            part = images[start : start + TOGETHER]
            rows = np.arange(start, start + len(part))
            batch = Batch(rows, self.extractor.features(part)[0], None)
            for keeper in keepers:
                keeper.add(batch)

    def score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Distance and accuracy of images uint8 (N,H,W,3) of the classes `labels` (N,)."""
        moments = Moments(self.extractor.width, self.extractor.device)
        hits = Hits(labels, self.means)
        self.show(images, moments, hits)
        distance = self.gaussian.distance(moments.mu, moments.sigma)
        return {"distance": distance, "accuracy": hits.shares().overall}
