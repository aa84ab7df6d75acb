"""How DeepCount learns: tiles, five density branches and the count, their gradients fused."""
