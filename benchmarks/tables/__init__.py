"""The papers' tables: what they print, and ours beside it."""
