"""For the Snakefile: files, keys and threads of an experiment, checks before the first job,
the report after the last one, and what a dry run says.
"""
