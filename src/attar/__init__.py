"""Attar presses a large language model into one that can be shipped."""
