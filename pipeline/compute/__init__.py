"""What every rank needs: its place among the others, its device, random numbers by index."""
