"""How networks learn: losses, the loop, evaluation during training."""
