"""The stages in fewer digits: casting, sensitivity, comparison with FP32, every precision side by side."""
