"""Files of weights -> a folder of samples: networks, velocity field, time grids, solvers."""
