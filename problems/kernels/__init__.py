"""Computing passes that can be differentiated (twice, forward) and cost little."""
