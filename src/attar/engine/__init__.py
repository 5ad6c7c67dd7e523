"""Planning, running, keeping and judging a recipe."""
