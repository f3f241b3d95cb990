"""What cannot be measured, and why."""

from vhostd.errors import VhostdError


class BenchError(VhostdError):
    """The measurement cannot be made as asked; the message says what to do instead."""
