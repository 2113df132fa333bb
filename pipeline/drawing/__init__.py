"""Pictures: grids of image tiles, the denoising strip, nearest neighbours, and charts."""
