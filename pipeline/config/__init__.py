"""The configuration: keys and their ranges, how values are laid over each other, and the names of
files and folders that follow from them. No torch, and no file is read except config.yaml.
"""
