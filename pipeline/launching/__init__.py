"""Launchers: the ranks of a job on this machine, on several, or in a Slurm job; leases of GPUs."""
