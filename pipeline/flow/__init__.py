"""Flow matching: the path from noise to data, its times, which noise goes with which image."""
