"""What a back-end does to this guest, typed by what would become of the guest."""

from vhostd.errors import DeviceError


class GuestFailure(DeviceError):  # noqa: N818 - as DeviceTimeout reads
    """The guest would not survive, or not notice, what the back-end did. `row` names what it expected."""

    def __init__(self, row: str, message: str) -> None:
        super().__init__(f"{row}: {message}")
        self.row = row


class GuestPanics(GuestFailure):
    """A used id that names no chain in flight: the kernel stops the machine."""


class GuestHangs(GuestFailure):
    """An answer or interrupt that does not come: the guest waits without limit."""


class GuestCorrupted(GuestFailure):
    """Memory, a status or a length that is not what it says: wrong data reaches the guest's upper layers."""


class NoAttach(GuestFailure):
    """The driver does not take the device, or its upper layers see no medium."""
