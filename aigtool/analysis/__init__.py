"""Pure functions over execution traces, and their plots."""
