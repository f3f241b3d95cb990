"""The host's end of a network card: an interface of the kernel behind it, with raw frames."""

import select
import socket
import time
from collections.abc import Callable

from vhostd.errors import DeviceTimeout

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
FRAME_LEN_MAX = 70000  # more than any GSO frame with its header


class Wire:
    """Raw frames of `interface`, with the kernel's virtio_net_hdr of 10 bytes in front if `vnet`; needs CAP_NET_RAW.

    `timeout` in seconds, for each frame. Raises OSError when the interface cannot be had.
    """

    def __init__(self, interface: str, *, vnet: bool = False, timeout: float = 5.0) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            if vnet:
                self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            self.socket.bind((interface, ETH_P_ALL))
            self.socket.settimeout(timeout)
        except BaseException:
            self.socket.close()
            raise

    def send(self, data: bytes) -> None:
        """Send a frame towards the card."""
        self.socket.send(data)

    def receive(self, timeout: float | None = None) -> bytes:
        """Return the next frame from the card. Raises TimeoutError."""
        if timeout is not None:
            self.socket.settimeout(timeout)
        return self.socket.recv(FRAME_LEN_MAX)

    def expect(self, wanted: Callable[[bytes], bool], timeout: float = 2.0) -> bytes:
        """Return the next frame that is `wanted`; what others send on the interface is passed over.

        Raises DeviceTimeout when none comes in `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                data = self.receive(left)
            except TimeoutError:
                break
            if wanted(data):
                return data
        raise DeviceTimeout("no such frame came to the interface in time")

    def silent(self, seconds: float = 0.05) -> bool:
        """Whether nothing comes for a while."""
        return not select.select([self.socket], [], [], seconds)[0]

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self.socket.close()
