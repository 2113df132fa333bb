"""Images to scores: features by an extractor, streamed over all ranks into float64 sums, and from
them the distances to a reference, precision and recall, class accuracy and nearest neighbours.
"""
