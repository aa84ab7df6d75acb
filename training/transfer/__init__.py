"""Structured knowledge transfer: what a student takes over from its teacher beside the answer."""
