"""Counting at scale: a list of photographs becomes Parquet, on all cores or on a cluster."""
