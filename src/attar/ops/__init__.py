"""Pure tensor mathematics: no settings objects, no state, no files."""
