"""The parts of the semi-supervised benchmark: tasks, cells, training, reports."""
