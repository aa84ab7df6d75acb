"""Photographs and annotations become samples. Imports neither torch nor any other stage."""
