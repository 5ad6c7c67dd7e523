"""Pure descriptions: what is asked for, and what came of it. Never imports torch."""
