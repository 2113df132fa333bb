"""Flow matching: the path from noise to data, its times, which noise goes with which image.

Of values between -1 and 1 (workload, probability_path, coupling), or of tokens out of masks
(discrete_workload, mixture_path, tokens).
"""
