"""The numbers, tables and figures of README and documentation, from the records of their runs."""
