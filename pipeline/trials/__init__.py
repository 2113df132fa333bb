"""Cheap scores of a network while its averages, guidance or training length are being chosen."""
