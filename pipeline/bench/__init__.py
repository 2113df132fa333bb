"""Measurements of this project against named baselines, and their records in results/benchmarks."""
