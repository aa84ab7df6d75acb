"""Trained networks made narrower: whole channels are removed, and what is left learns on."""
