"""Measurements of the gradient methods against each other: errors, cost, memory, stability."""
