"""Files of other projects, read safely and translated into ours."""
