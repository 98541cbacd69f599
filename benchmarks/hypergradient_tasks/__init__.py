"""The tasks, contenders and figures of the hypergradient benchmark."""
