"""Steps that make data: variants of texts, texts that a teacher writes, and its labels."""
