"""Batches and loaders: validation, positions in an epoch, shares of several processes."""
