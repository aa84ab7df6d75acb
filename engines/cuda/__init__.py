"""One CUDA device: memory, streams, events and graphs, whichever library reaches the driver."""
