"""Batches and loaders: what they are, where they stand, who reads which share."""
