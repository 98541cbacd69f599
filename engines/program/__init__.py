"""The program as data that can be printed: graph, schedule, settings, run state."""
