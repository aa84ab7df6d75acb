"""Painted crowds with every head annotated, for where no data set is at hand."""
