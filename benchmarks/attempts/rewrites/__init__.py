"""Graphs rewritten for an attempt: the same function, computed otherwise."""
