"""Files to raw arrays and back, and how to look at them."""
