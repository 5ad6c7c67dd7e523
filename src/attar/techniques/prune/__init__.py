"""Fewer weights: whole blocks, heads, neurons and hidden channels."""
