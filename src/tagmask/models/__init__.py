"""Networks without training code. They map images to tensors, and they save and load their own weights."""
