"""What the accuracy benchmarks share: data, protocols, methods, training and records."""
