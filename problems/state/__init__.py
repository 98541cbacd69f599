"""State that evaluations must not change and checkpoints must contain: buffers, random streams,
optimizers."""
