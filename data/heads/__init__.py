"""Photographs with annotated heads: the published layouts, and density maps from heads."""
