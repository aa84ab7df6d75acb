"""Photographs to learn from, whatever is annotated on them: drawn, kept, cut and varied."""
