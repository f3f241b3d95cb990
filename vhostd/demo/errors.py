"""What goes wrong with a guest."""

from vhostd.errors import VhostdError


class DemoError(VhostdError):
    """The guest, its QEMU or what they need did not do what was asked; the message carries what they printed last."""
