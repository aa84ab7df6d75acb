"""Networks served by Triton: a model repository, and the client that asks it."""
