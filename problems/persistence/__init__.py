"""The state of a problem as plain data, and back."""
