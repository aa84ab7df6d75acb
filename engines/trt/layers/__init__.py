"""What a built plan does, layer by layer: precision, time, roofline."""
