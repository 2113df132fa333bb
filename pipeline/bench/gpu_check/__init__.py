"""Checks that a GPU computes what a CPU, or float64, computes; the command is in command.py.

Each module of GROUPS (command.py) has a table CHECKS, and runs in a separate process.
"""
