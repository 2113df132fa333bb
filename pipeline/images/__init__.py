"""An image set -> a pack: sources of images, decoding, recipes for small pixels, and the pack in
the making, which any kind of end leaves ready to go on.
"""
