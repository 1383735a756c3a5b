"""The error of an optional package that is not installed."""


class MissingDependency(ImportError):
    """An optional package that was asked for is not installed."""
