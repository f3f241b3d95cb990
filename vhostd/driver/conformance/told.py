"""A front-end and a block driver that write down what they send and get."""

import os
from collections.abc import Sequence
from typing import Any, Self

from vhostd.driver.blk import BlockDriver, Pending
from vhostd.driver.conformance import words
from vhostd.driver.conformance.verdict import Evidence
from vhostd.driver.frontend import Frontend
from vhostd.driver.virtqueue import Virtqueue
from vhostd.protocol.framing import Frame
from vhostd.spec.vhost_user import VERSION
from vhostd.spec.virtio import DeviceId


class ToldFrontend(Frontend):
    """A Frontend whose every frame goes into `evidence`."""

    evidence: Evidence
    device: DeviceId | None = None

    @classmethod
    def telling(
        cls, path: str | os.PathLike[str], evidence: Evidence, device: DeviceId | None, *, timeout: float, wait: float
    ) -> Self:
        """Connect as `connect` does."""
        made = cls.connect(path, timeout=timeout, wait=wait)
        made.evidence = evidence
        made.device = device
        return made

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = VERSION) -> None:
        """Send one frame as given, and write it down."""
        self.evidence.note(words.frame(request, flags, payload, len(fds), self.device))
        super().send(request, payload, fds, flags=flags)

    def receive(self, timeout: float | None = None) -> Frame:
        """Return the next frame, and write it down."""
        frame = super().receive(timeout)
        self.evidence.note(words.reply(frame.request, frame.flags, frame.payload, len(frame.fds), self.device))
        return frame


class ToldBlockDriver(BlockDriver):
    """A BlockDriver whose every request goes into `evidence`."""

    def __init__(self, queue: Virtqueue, evidence: Evidence, *, timeout: float = 5.0, poll: bool = False) -> None:
        super().__init__(queue, timeout=timeout, poll=poll)
        self.evidence = evidence

    def submit(self, kind: int, sector: int = 0, data: bytes = b"", **framing: Any) -> Pending:
        """Hand a request to the device, and write it down."""
        pending = super().submit(kind, sector, data, **framing)
        form = "" if framing.get("header") is None else " with a header of its own"
        self.evidence.note(
            f"request {words.request_name(kind)} sector {sector}{form}: device-readable "
            f"{words.lengths(pending.readable)}; device-writable {words.lengths(pending.writable)}"
        )
        return pending

    def collect(self, timeout: float | None = None) -> list[Pending]:
        """Wait for requests that are back, and write down what came."""
        done = super().collect(timeout)
        for pending in done:
            if pending.completion is not None:
                self.evidence.note(
                    f"  used: status {words.status_name(pending.completion.status)}, "
                    f"length {pending.completion.used_len}"
                )
        return done
