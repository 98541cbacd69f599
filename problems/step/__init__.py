"""One descent step: the gradient, hypergradients included, and the update."""
