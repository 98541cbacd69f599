"""Shared parts of the accuracy benchmarks: data, protocols, methods, training and records."""
