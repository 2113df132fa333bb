"""A pack -> batches: arrays and records on disk, and readers that give any position its image."""
