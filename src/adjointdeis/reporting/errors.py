"""The named error of the reporting room."""


class ReportError(ValueError):
    """A run directory, result or destination that cannot be reported; names the file or key."""
