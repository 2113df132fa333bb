"""Any workload -> weights: steps shared out over ranks, checkpoints, averages, the curve.

Knows neither images nor flow nor networks: workload.py is all that it asks of them.
"""
