"""Methods of compression held side by side: SKT's Table 5, what was measured, and what follows."""
