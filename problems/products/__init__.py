"""Products of second derivatives of a loss with a vector."""
