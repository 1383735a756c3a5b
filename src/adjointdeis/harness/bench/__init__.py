"""Tasks with a known answer on which guidance algorithms are compared."""
