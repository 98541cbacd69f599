"""What a step was: its batch, random numbers, parameters and optimizer state."""
