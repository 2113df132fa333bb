"""Networks by family: how each is built, and which of its blocks are sharded."""
