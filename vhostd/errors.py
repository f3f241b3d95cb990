"""Every exception of ours, in one tree, typed by whose fault it is.

A message says who, what, and which rule: `SET_MEM_TABLE: 3 fds for 2 regions (vhost-user, "Memory region
description")`. The reader of each type:

    ConfigError            the operator: a flag, a file, an image that cannot be served
    RemoteProtocolError    the front-end: a message that breaks the vhost-user document
    LocalProtocolError     us: our own end was asked for something it must not do
    GuestMemoryError       the guest or front-end: an address outside the memory that was shared
    BackendError           the host: a disk, a tap, a kernel that failed; keeps the OSError
    ControlError           the operator's client: carries the QMP error class
    DeviceError            the back-end that driver/ drives: it broke a rule a driver may rely on
"""


class VhostdError(Exception):
    """The root: an error that was understood."""


class ConfigError(VhostdError):
    """What the operator asked for cannot be had; the message says what to do instead."""


class RemoteProtocolError(VhostdError):
    """The front-end broke the protocol. `fatal`: the stream can no longer be trusted, so no reply, only close."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class LocalProtocolError(VhostdError):
    """A bug of ours: our end was asked to send or do what the document forbids."""


class GuestMemoryError(VhostdError):
    """A range that is not wholly inside the memory the front-end shared."""


class BackendError(VhostdError):
    """The host failed. `os_error` is what the system said, when it was a system call."""

    def __init__(self, message: str, os_error: OSError | None = None) -> None:
        super().__init__(message if os_error is None else f"{message}: {os_error.strerror or os_error}")
        self.os_error = os_error


class ControlError(VhostdError):
    """A control command that cannot be carried out, with the class QMP clients switch on."""

    def __init__(self, message: str, qmp_class: str = "GenericError") -> None:
        super().__init__(message)
        self.qmp_class = qmp_class


class DeviceError(VhostdError):
    """The back-end under test broke a rule of either document; the message names the rule."""


class DeviceTimeout(DeviceError):  # noqa: N818 - as TimeoutError reads
    """The back-end did not answer in time. What it was given is still its own: no buffer may be used again."""


class DeviceGone(DeviceError):  # noqa: N818
    """The back-end closed the connection."""


class RingError(DeviceError):
    """The back-end signalled the error eventfd of a ring (vhost-user, "Ring states")."""


class Refused(DeviceError):  # noqa: N818
    """The back-end answered that it did not do what was asked: a REPLY_ACK other than 0, or an empty GET_CONFIG."""
