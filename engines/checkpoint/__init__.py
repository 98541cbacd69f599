"""The state of a running program, written to disk and read back."""
