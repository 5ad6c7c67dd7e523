"""One file a technique; the kind of a technique is its path here."""
