"""Builds for a fleet: one network becomes an engine on every kind of machine of a cluster."""
