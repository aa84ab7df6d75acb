"""What an engine saw, drawn on the photograph."""
