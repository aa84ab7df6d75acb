"""Learning in simulated INT8, on the grid of the file that ships."""
