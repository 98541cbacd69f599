"""Recorded steps: their batches, random numbers, parameters and optimizer state."""
