"""What the semi-supervised benchmark is made of: tasks, cells, training, reports."""
