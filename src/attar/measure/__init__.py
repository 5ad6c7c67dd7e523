"""What a model is worth and what it costs: quality, speed, memory, size, and the verdict."""
