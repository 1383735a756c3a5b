"""Sets of faces on disk, and lists of pairs of them."""
