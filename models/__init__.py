"""The networks, one paper per file, and the one list of them."""
