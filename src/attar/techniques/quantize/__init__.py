"""Fewer bits for each weight."""
