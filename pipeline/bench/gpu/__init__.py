"""Measurements on one GPU, in parts of at most nine minutes each: `make bench-gpu`.

Each part is a module function that takes a `Scale` (scale.py), so that a test runs it as small as
it likes on the CPU. parts.py holds the table of parts and the command.
"""
