"""Chains of descriptors: one interface, whatever the ring is made of.

A chain has a fixed capacity. Where indirect descriptors were negotiated it has a table of its own, made with it, and
takes one descriptor of the ring; else it takes as many as it has buffers.
"""

import enum
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from vhostd.driver.framework.pool import Buffer, Constraints, Pool
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec import virtio


class State(enum.Enum):
    """Where a chain is in its life."""

    ALLOCATED = "allocated"  # ours: appended to, cleared
    IN_FLIGHT = "in flight"  # the device's, or about to be
    COMPLETE = "complete"  # came back; its completion has it
    POLLED = "polled"  # came back to somebody who waits for it, and who frees it


class Event(enum.Enum):
    """What moves it on."""

    SUBMIT = "submit"
    COMPLETE = "complete"
    POLL = "poll"
    EVACUATE = "evacuate"
    CLEAR = "clear"


TABLE: dict[tuple[State, Event], State] = {  # what is not here is a mistake, and raises
    (State.ALLOCATED, Event.SUBMIT): State.IN_FLIGHT,
    (State.ALLOCATED, Event.CLEAR): State.ALLOCATED,
    (State.IN_FLIGHT, Event.COMPLETE): State.COMPLETE,
    (State.IN_FLIGHT, Event.POLL): State.POLLED,
    (State.IN_FLIGHT, Event.EVACUATE): State.ALLOCATED,
    (State.COMPLETE, Event.CLEAR): State.ALLOCATED,
    (State.POLLED, Event.CLEAR): State.ALLOCATED,
}


class Chain:
    """Buffers for one request, device-readable ones first (2.7.4.2). Made by ChainQueue.chain."""

    def __init__(self, queue: "ChainQueue", capacity: int, table: Buffer | None) -> None:
        self.queue = queue
        self.capacity = capacity
        self.state = State.ALLOCATED
        self.used_len = 0  # what the device says it wrote: untrusted, but not more than there was
        self.cookie: Any = None  # the driver's
        self.on_complete: Callable[[Chain], None] | None = None  # called when nobody waits for it
        self.awaited = False
        self.readable: list[tuple[int, int]] = []
        self.writable: list[tuple[int, int]] = []
        self.table = table

    def __len__(self) -> int:
        return len(self.readable) + len(self.writable)

    def append(self, gpa: int, length: int, *, device_writes: bool = False) -> None:
        """Add a buffer of `length` bytes behind the others.

        Raises LocalProtocolError when the chain is full, in flight, or device-readable would follow device-writable.
        """
        if self.state is not State.ALLOCATED:
            raise LocalProtocolError(f"chain: a buffer is added while it is {self.state.value}")
        if len(self) >= self.capacity:
            raise LocalProtocolError(f"chain: it has room for {self.capacity} buffers")
        if length <= 0:
            raise LocalProtocolError(f"chain: a buffer of {length} bytes")
        if self.writable and not device_writes:
            raise LocalProtocolError("chain: a device-readable buffer behind a device-writable one (2.7.4.2)")
        (self.writable if device_writes else self.readable).append((gpa, length))

    def append_buffer(self, buffer: Buffer, *, device_writes: bool = False) -> None:
        """Add every segment of a buffer."""
        for gpa, length in buffer.segments:
            self.append(gpa, length, device_writes=device_writes)

    def clear(self) -> None:
        """Forget the buffers and all that a use has left, as if it had just been made."""
        self.move(Event.CLEAR)
        self.readable.clear()
        self.writable.clear()
        self.used_len = 0
        self.awaited = False
        self.cookie = None
        self.on_complete = None

    def move(self, event: Event) -> None:
        """Let an event happen. Raises LocalProtocolError for one that cannot be in this state."""
        following = TABLE.get((self.state, event))
        if following is None:
            raise LocalProtocolError(f"chain: {event.value} while it is {self.state.value}")
        self.state = following


class ChainQueue:
    """A ring and its chains. `poll`: spin on the ring instead of sleeping on the call descriptor.

    `chains` are made at once, of `capacity` buffers each; more never. Raises LocalProtocolError when the arena has no
    room. It is one thread's, the one that uses it first, until `hand_over`; calls of another raise LocalProtocolError,
    but not with `python -O`.
    """

    def __init__(self, ring: Virtqueue, *, chains: int, capacity: int, poll: bool = False) -> None:
        self.ring = ring
        self.poll = poll
        self._tables: Pool | None = None
        if ring.indirect:
            length = virtio.desc_table_len(capacity)
            self._tables = Pool(ring.arena, chains, length, Constraints(align=virtio.DESC_ALIGN))
        self._free = [
            Chain(self, capacity, None if self._tables is None else self._tables.take()) for _ in range(chains)
        ][::-1]
        self.count = chains
        self.evacuated = 0  # chains that a reset took back from the device
        self._thread: int | None = None

    def hand_over(self) -> None:
        """Let the next thread that uses it have it."""
        self._thread = None

    def _check_thread(self) -> None:
        if __debug__:
            here = threading.get_ident()
            if self._thread is None:
                self._thread = here
            elif self._thread != here:
                raise LocalProtocolError(
                    f"ring: thread {self._thread} has it, and thread {here} uses it: hand_over() first"
                )

    @property
    def free(self) -> int:
        """How many chains can be taken: a snapshot."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """How many the device has: a snapshot."""
        return self.ring.in_flight

    def take(self) -> Chain | None:
        """Take an empty chain, or None when there is none."""
        self._check_thread()
        return self._free.pop() if self._free else None

    def give(self, chain: Chain) -> None:
        """Clear a chain and give it back. Raises LocalProtocolError while it is in flight, or for one given twice."""
        self._check_thread()
        if chain.queue is not self or chain in self._free:
            raise LocalProtocolError("chain: it is not out, and given back")
        chain.clear()
        self._free.append(chain)

    def submit(self, chain: Chain, *, awaited: bool = False) -> None:
        """Put a chain into the ring; the device sees it after `flush`. `awaited`: somebody will `wait` for it.

        Raises LocalProtocolError when the ring has no room (the chain is as before), DeviceError on a broken ring.
        """
        self._check_thread()
        if chain.state is not State.ALLOCATED:
            raise LocalProtocolError(f"chain: submitted while it is {chain.state.value}")
        indirect = chain.table is not None
        table = None if chain.table is None else chain.table.gpa
        self.ring.add(chain.readable, chain.writable, token=chain, indirect=indirect, table=table)
        chain.awaited = awaited
        chain.move(Event.SUBMIT)

    def flush(self) -> None:
        """Show the device all that was submitted, and kick it if it wants that."""
        self._check_thread()
        self.ring.kick()

    def reap(self) -> int:
        """Take back what the device has used; call the completions of chains nobody waits for. How many came.

        Raises DeviceError for a used element that cannot be, which breaks the ring.
        """
        self._check_thread()
        return self._hand_out(self.ring.reap())

    def wait(self, chain: Chain, timeout: float) -> Chain:
        """Wait for a chain that was submitted as awaited; it is POLLED then, and the caller's to give back.

        Completions of others run meanwhile. Raises DeviceTimeout after `timeout` seconds.
        """
        if not chain.awaited:
            raise LocalProtocolError("chain: waited for by somebody it was not submitted for")
        self.until(lambda: chain.state is not State.IN_FLIGHT, timeout)
        return chain

    def until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Reap until something holds. Raises DeviceTimeout after `timeout` seconds."""
        self._check_thread()
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceTimeout(f"{self.ring.in_flight} chains were not returned in {timeout:g} s")
            self._hand_out(self.ring.wait(left, poll=self.poll))

    def evacuate(self) -> list[Chain]:
        """Take back every chain the device has; it has stopped the ring. They are ALLOCATED, and their owner's."""
        self._check_thread()
        chains: list[Chain] = self.ring.tokens()
        self.ring.reset()
        for chain in chains:
            chain.move(Event.EVACUATE)
        self.evacuated += len(chains)
        return chains

    def close(self) -> None:
        """Give the tables back; a second time does nothing. The device has stopped the ring."""
        if self._tables is not None:
            self._tables.close()
        self._tables = None
        self._free = []

    def _hand_out(self, found: list[Any]) -> int:
        for used in found:
            chain: Chain = used.token
            if chain.state is not State.IN_FLIGHT:
                raise DeviceError(f"a chain came back that is {chain.state.value}")
            chain.used_len = used.length
            if chain.awaited:
                chain.move(Event.POLL)
            else:
                chain.move(Event.COMPLETE)
                if chain.on_complete is not None:
                    chain.on_complete(chain)
        return len(found)


def drain(descriptor: int) -> int:
    """Empty an eventfd that may be shared: how many signals there were since, 0 for none."""
    try:
        return os.eventfd_read(descriptor)
    except BlockingIOError:
        return 0
