"""One file a target: an artifact's codes copied into the container that an engine reads."""
