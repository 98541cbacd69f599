"""A problem as plain data, and back."""
