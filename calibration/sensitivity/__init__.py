"""Which layers INT8 costs counts, and which few to keep in float so that it does not."""
