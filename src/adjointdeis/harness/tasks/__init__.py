"""Tasks of `run.py`: each module has a `run(cfg)` that returns the run's result."""
