"""A running program on disk, and back."""
