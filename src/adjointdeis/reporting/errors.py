"""The named error of reporting."""


class ReportError(ValueError):
    """A run directory, result or destination that cannot be reported; names the file or key."""
