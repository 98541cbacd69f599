"""Replacements of torch's operations that can be differentiated twice and forward at low cost."""
