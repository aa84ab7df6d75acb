"""The trained networks that the project ships, one safetensors file and model card each."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
