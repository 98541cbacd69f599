"""Definitions used by all other packages: errors, checks of settings, arithmetic on tensors."""
