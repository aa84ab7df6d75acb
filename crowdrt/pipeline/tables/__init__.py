"""The papers' tables that need no stopwatch, cell by cell."""
