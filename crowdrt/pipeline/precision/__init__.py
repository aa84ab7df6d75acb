"""The stages in fewer digits: casting, sensitivity, forms beside FP32, judged and timed."""
