"""One HTML page of everything a run measured."""
