"""Something learned that a language model reads before every text."""
