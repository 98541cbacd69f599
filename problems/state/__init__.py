"""What a step must leave as it was, and what a checkpoint must hold:
buffers, random streams, optimizers."""
