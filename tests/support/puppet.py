"""A back-end that does what a test says: it answers messages, and a thread plays the device on the driver's rings.

The device's half is the reference device of either format, which reads the memory that the driver made: both live in
one process, so nothing is mapped twice.
"""

import contextlib
import socket
import struct
import threading
import time

from tests.support.packed_device import PackedDevice
from tests.support.reference_device import ReferenceDevice
from vhostd.driver.frontend import Stream
from vhostd.errors import DeviceError
from vhostd.protocol.wire import frame_bytes
from vhostd.spec.vhost_user import FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

R = FrontendRequest
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG | ProtocolFeature.STATUS
SILENT = object()  # for Puppet.answers: no reply at all


def u64(value):
    return struct.pack("<Q", value)


class Puppet:
    """Listens at `path`. `answers` maps a request to a payload, a function of the frame, or SILENT.

    `config` is the configuration space, bytes or a function that returns them anew at each read.
    """

    def __init__(self, path, *, features, config=b"", protocol=PROTOCOL, queues=1, answers=()):
        self.features = int(features | Feature.PROTOCOL_FEATURES)
        self.config = config
        self.protocol = protocol
        self.queues = queues
        self.answers = dict(answers)
        self.status = 0
        self.requests = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def play(self, device, behave):
        """Serve the rings of an attached Device: behave(index, readable, writable) returns bytes written, or None.

        None keeps the chain for ever. A result may also be a list of (id, length) to be used instead.
        """
        thread = threading.Thread(target=self._play, args=(device, behave), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _play(self, device, behave):
        halves = {}
        while not self._stop.is_set():
            for index, ring in enumerate(device.rings):
                if device._closed:
                    return
                if not device.running:
                    halves.pop(index, None)
                    continue
                half = halves.get(index)
                if half is None:
                    half = PackedDevice(device.arena, ring) if ring.packed else ReferenceDevice(device.arena, ring)
                    halves[index] = half
                with contextlib.suppress(Exception):  # the driver may have gone in the middle of it
                    self._serve(half, index, behave, packed=ring.packed)
            time.sleep(0.0005)

    def _serve(self, half, index, behave, *, packed):
        pushed = False
        while (chain := half.pop()) is not None:
            ident, readable, writable = (chain.id, chain.readable, chain.writable) if packed else chain
            written = behave(index, readable, writable)
            if written is None:
                continue
            for used, length in [(ident, written)] if isinstance(written, int) else written:
                if packed:
                    chain.id = used
                    half.push(chain, length)
                else:
                    half.push(used, length)
                pushed = True
        if packed:
            half.call()
        elif pushed:
            half.publish()

    def _listen(self):
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection):
        stream = Stream(connection, 0.2)
        with connection:
            while not self._stop.is_set():
                try:
                    frame = stream.receive()
                except DeviceError as error:
                    if "in time" in str(error):
                        continue
                    return
                frame.close_fds()
                self.requests.append(frame.request)
                reply = self._reply(frame)
                if reply is not SILENT:
                    with contextlib.suppress(DeviceError):
                        stream.send_bytes(frame_bytes(frame.request, VERSION | FLAG_REPLY, reply))

    def _reply(self, frame):
        if frame.request in self.answers:
            answer = self.answers[frame.request]
            return answer(frame) if callable(answer) else answer
        if frame.request == R.SET_STATUS:
            (self.status,) = struct.unpack("<Q", frame.payload)
        values = {
            R.GET_FEATURES: self.features,
            R.GET_PROTOCOL_FEATURES: self.protocol,
            R.GET_QUEUE_NUM: self.queues,
            R.GET_STATUS: self.status,
        }
        if frame.request in values:
            return u64(values[frame.request])
        if frame.request == R.GET_VRING_BASE:
            return frame.payload
        if frame.request == R.GET_CONFIG:
            offset, size, _ = struct.unpack("<III", frame.payload[:12])
            space = self.config() if callable(self.config) else self.config
            return frame.payload[:12] + space[offset : offset + size].ljust(size, b"\0")
        return u64(0) if frame.need_reply else SILENT
