"""Networks by family, and their weights as files."""
