"""How networks learn to count: crops and their density maps, losses, errors in people."""
