"""Stochastic bilevel problems, their value functions, and the contenders that solve them."""
