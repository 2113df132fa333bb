"""The steps of the pipeline: downsample -> train -> sample -> evaluate -> report."""
