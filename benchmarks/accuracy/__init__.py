"""What engines answer, against what photographs are annotated with."""
