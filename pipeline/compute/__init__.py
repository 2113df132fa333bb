"""The needs of every rank: its place among the others, its device, random numbers by index."""
