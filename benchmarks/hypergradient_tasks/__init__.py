"""The tasks of the hypergradient benchmark, the contenders, and how results are shown."""
