"""Float16 in the file: what fits, typed casts, what counts do."""
