"""Algorithms that use gradients through sampling, one file each."""
