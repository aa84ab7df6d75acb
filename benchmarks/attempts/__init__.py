"""What was tried to make the student faster on a CPU: each with its prediction and its outcome."""
