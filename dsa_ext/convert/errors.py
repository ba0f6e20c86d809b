"""What stops a conversion: one sentence for the user, and an exit status."""


class ConvertError(Exception):
    """The checkpoint, the disk or the machine does not allow the conversion."""

    status = 1


class UsageError(ConvertError):
    """The command line alone is wrong."""

    status = 2
