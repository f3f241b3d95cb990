"""Fifty ways to break the device side, a line or two each: what a tester is for is to notice them.

A mutant replaces `old`, which stands once in its file, by `new`. `breaks` says which rule the device then breaks.
`tests` are the first to look, relative to the repository: those of the room that was broken.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One seeded mistake."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: str


QUEUES = "tests/unit/queues"
RINGS = "tests/unit/queues tests/protocol/test_rings.py"
BLOCK = "tests/protocol/test_block.py tests/hostile/test_block.py"
NET = "tests/unit/net"
LATE = "tests/unit/workers tests/protocol/test_illumos.py"
PROTOCOL = "tests/unit/protocol tests/protocol/test_negotiation.py tests/protocol/test_life.py"

SPLIT = "vhostd/queues/split.pyx"
CHAIN = "vhostd/queues/chain.pyx"
MEMORY = "vhostd/queues/memory.pyx"
QUEUE = "vhostd/queues/queue.pyx"
HANDLER = "vhostd/backends/block/handler.pyx"
REQUEST = "vhostd/backends/block/request.pyx"
HEADER = "vhostd/backends/net/header.pxd"
RX = "vhostd/backends/net/rx.pyx"
TX = "vhostd/backends/net/tx.pyx"
SESSION = "vhostd/protocol/backend_session.py"
VRING = "vhostd/protocol/vring.py"
DEVICE = "vhostd/devices/device.py"
LOOP = "vhostd/workers/loop.pyx"

MUTANTS = [
    # The split ring (virtio 2.7).
    Mutant(
        "avail-idx-one-too-far",
        SPLIT,
        "if pending > q.size:",
        "if pending > q.size + 1:",
        "2.7.6: avail.idx is never further ahead than the queue is long",
        QUEUES,
    ),
    Mutant(
        "head-may-be-the-size",
        SPLIT,
        "if slot >= q.size:",
        "if slot > q.size:",
        "2.7.6: a head names a descriptor of the table",
        QUEUES,
    ),
    Mutant(
        "head-twice-in-flight",
        SPLIT,
        "if q.busy[slot >> 6] & bit:",
        "if bit == 0:",
        "2.7.13: a head in flight is not available",
        QUEUES,
    ),
    Mutant(
        "used-ring-half-as-long",
        SPLIT,
        "cdef uint16_t slot = q.next_used & q.mask",
        "cdef uint16_t slot = q.next_used & (q.mask >> 1)",
        "2.7.8: used elements go to used.idx modulo the queue's size",
        QUEUES,
    ),
    Mutant(
        "used-length-one-more",
        SPLIT,
        "q.used.ring[slot].len = written",
        "q.used.ring[slot].len = written + 1",
        "2.7.8: len is what was written",
        QUEUES,
    ),
    Mutant(
        "used-id-of-another",
        SPLIT,
        "q.used.ring[slot].id = head",
        "q.used.ring[slot].id = head ^ 1",
        "2.7.8: id is the chain's head",
        QUEUES,
    ),
    Mutant(
        "last-used-not-published",
        SPLIT,
        "store_release_u16(&q.used.idx, q.next_used)",
        "store_release_u16(&q.used.idx, <uint16_t>(q.next_used - 1))",
        "2.7.8: used.idx counts every element",
        QUEUES,
    ),
    Mutant(
        "no-second-look",
        SPLIT,
        "return load_relaxed_u16(&q.avail.idx) != seen or load_relaxed_u32(q.mem.faulted)",
        "return load_relaxed_u32(q.mem.faulted)",
        "2.7.10, 2.7.13.4.1: after asking for kicks, look again",
        QUEUES,
    ),
    Mutant(
        "avail-event-behind",
        SPLIT,
        "store_relaxed_u16(q.avail_event, seen)",
        "store_relaxed_u16(q.avail_event, <uint16_t>(seen - 1))",
        "2.7.10: avail_event is the index whose entry is to be announced",
        QUEUES,
    ),
    Mutant(
        "call-lost-at-used-event",
        SPLIT,
        "return <uint16_t>(new - event - 1) < <uint16_t>(new - old)",
        "return <uint16_t>(new - event) < <uint16_t>(new - old)",
        "2.7.7: a call when used.idx passes used_event",
        QUEUES,
    ),
    Mutant(
        "no-interrupt-inverted",
        SPLIT,
        "return not load_relaxed_u16(&q.avail.flags) & AVAIL_F_NO_INTERRUPT",
        "return load_relaxed_u16(&q.avail.flags) & AVAIL_F_NO_INTERRUPT",
        "2.7.7: NO_INTERRUPT asks for no calls",
        QUEUES,
    ),
    Mutant(
        "chain-taken-back-is-lost",
        SPLIT,
        "    q.next_avail -= 1\n    q.in_flight -= 1",
        "    q.in_flight -= 1",
        "2.7.13: a chain that was not used stays available",
        "tests/unit/net tests/unit/queues tests/protocol/test_rings.py",
    ),
    Mutant(
        "never-drained",
        SPLIT,
        "    q.next_used += 1\n    q.in_flight -= 1",
        "    q.next_used += 1",
        'vhost-user, "Ring states": GET_VRING_BASE is answered when the ring has stopped',
        "tests/unit/queues tests/protocol/test_life.py",
    ),
    Mutant(
        "no-notify-with-event-idx",
        SPLIT,
        "    if q.avail_event == NULL:\n        store_relaxed_u16(&q.used.flags, USED_F_NO_NOTIFY)",
        "    store_relaxed_u16(&q.used.flags, USED_F_NO_NOTIFY)",
        "2.7.10.1: with EVENT_IDX the flags of the used ring are 0",
        QUEUES,
    ),
    # Chains (2.7.4, 2.7.5).
    Mutant(
        "chain-of-the-whole-table-refused",
        CHAIN,
        "if hops >= q.size:",
        "if hops >= q.size - 1:",
        "2.7.5: a chain may have as many descriptors as the queue",
        RINGS,
    ),
    Mutant(
        "next-may-be-the-size",
        CHAIN,
        "if d.next >= q.size:",
        "if d.next > q.size:",
        "2.7.5: next names a descriptor of the table",
        RINGS,
    ),
    Mutant(
        "next-may-leave-the-indirect-table",
        CHAIN,
        "if d.next >= entries:",
        "if d.next > entries:",
        "2.7.5.3: next stays in the indirect table",
        RINGS,
    ),
    Mutant(
        "indirect-without-the-feature",
        CHAIN,
        "if not q.indirect or table.flags & DESC_F_NEXT:",
        "if table.flags & DESC_F_NEXT:",
        "2.7.5.3.1: INDIRECT only where it was negotiated",
        RINGS,
    ),
    Mutant(
        "indirect-table-of-any-length",
        CHAIN,
        "if entries == 0 or table.len & 15 or",
        "if entries == 0 or",
        "2.7.5.3: an indirect table is whole descriptors",
        RINGS,
    ),
    Mutant(
        "readable-after-writable",
        CHAIN,
        "        if c.writable:\n            return VQ_E_ORDER\n",
        "",
        "2.7.4.2: device-writable buffers come last",
        RINGS,
    ),
    Mutant(
        "indirect-in-indirect",
        CHAIN,
        "        if d.flags & DESC_F_INDIRECT:\n            return VQ_E_INDIRECT\n",
        "",
        "2.7.5.3.1: an indirect table refers to no other",
        RINGS,
    ),
    Mutant(
        "buffer-over-a-border",
        CHAIN,
        "iov.iov_len = <size_t>run",
        "iov.iov_len = <size_t>left",
        'vhost-user, "Memory access": a buffer over two regions is in two places',
        RINGS,
    ),
    # Guest memory.
    Mutant(
        "one-byte-behind-a-region",
        MEMORY,
        "    if gpa - r.gpa >= r.len:\n        return NULL",
        "    if gpa - r.gpa > r.len:\n        return NULL",
        'vhost-user, "Memory region description": a region ends at its size',
        RINGS,
    ),
    Mutant(
        "region-beyond-its-file",
        MEMORY,
        "if mmap_offset + length > status.st_size:",
        "if length > status.st_size:",
        'vhost-user, "Memory region description": offset and size lie in the file',
        QUEUES,
    ),
    # A queue as the front-end sees it.
    Mutant(
        "used-event-two-bytes-early",
        QUEUE,
        "<uint16_t *><uint64_t>(avail + 4 + 2 * size) if event_idx",
        "<uint16_t *><uint64_t>(avail + 2 + 2 * size) if event_idx",
        "2.7.6: used_event lies behind the ring's last entry",
        RINGS,
    ),
    Mutant(
        "silent-ring-error",
        QUEUE,
        "    if q.err_fd >= 0:\n        keep_nonblocking",
        "    if q.err_fd < -1:\n        keep_nonblocking",
        'vhost-user, "SET_VRING_ERR": an error is signalled',
        "tests/protocol/test_rings.py tests/hostile/test_rings.py",
    ),
    Mutant(
        "wrong-base-at-stop",
        QUEUE,
        "        return self.c.next_avail\n",
        "        return <uint16_t>(self.c.next_avail - 1)\n",
        'vhost-user, "GET_VRING_BASE": the next available index',
        "tests/unit/queues tests/protocol/test_life.py",
    ),
    # Block requests (5.2.6).
    Mutant(
        "status-not-written",
        HANDLER,
        "    r.status_at[0] = status\n",
        "",
        "5.2.6: the last byte is the status",
        BLOCK,
    ),
    Mutant(
        "status-byte-not-counted",
        HANDLER,
        "    if written == r.room:\n        written += 1\n",
        "",
        "2.7.8.2: the status byte was written, too",
        BLOCK,
    ),
    Mutant(
        "read-of-no-length",
        HANDLER,
        "finish(b, r, BLK_S_OK, <uint32_t>r.len)",
        "finish(b, r, BLK_S_OK, 0)",
        "2.7.8.2: a read's data was written",
        BLOCK,
    ),
    Mutant(
        "writes-beyond-the-end",
        REQUEST,
        "return sector <= capacity and sectors <= capacity - sector",
        "return sector <= capacity and sectors <= capacity",
        "5.2.6.2: a request beyond the capacity is an error",
        BLOCK,
    ),
    Mutant(
        "writes-to-a-read-only-disk",
        REQUEST,
        "if writable_len or disk.read_only:",
        "if writable_len:",
        "5.2.6.2: a write to a read-only disk is an IOERR",
        BLOCK,
    ),
    Mutant(
        "unknown-segment-flags",
        REQUEST,
        "        if s.flags & ~flags:\n            answer(r, BLK_S_UNSUPP, 0)"
        "  # 5.2.6.2: MUST, and so for unmap on a discard\n            return\n",
        "",
        "5.2.6.2: unknown flags of a segment are UNSUPP",
        BLOCK,
    ),
    Mutant(
        "id-of-nineteen-bytes",
        REQUEST,
        "put(writable, writable_count, disk.serial, BLK_ID_LEN)",
        "put(writable, writable_count, disk.serial, BLK_ID_LEN - 1)",
        "5.2.6: GET_ID has 20 bytes",
        BLOCK,
    ),
    Mutant(
        "header-of-fifteen-bytes",
        REQUEST,
        "if chain.bad or chain.readable_len < BLK_HEADER_LEN:",
        "if chain.bad:",
        "5.2.6: a request begins with 16 bytes",
        BLOCK,
    ),
    Mutant(
        "half-sectors",
        REQUEST,
        "if len & 511 or len > TRANSFER_LEN_MAX",
        "if len > TRANSFER_LEN_MAX",
        "5.2.6.1: data is a multiple of 512 bytes",
        BLOCK,
    ),
    Mutant(
        "unknown-type-is-an-error",
        REQUEST,
        "    else:\n        answer(r, BLK_S_UNSUPP, 0)\n    return 0",
        "    else:\n        answer(r, BLK_S_IOERR, 0)\n    return 0",
        "5.2.6: a type that is not supported is UNSUPP",
        BLOCK,
    ),
    Mutant(
        "discard-without-the-feature",
        REQUEST,
        "if not load_relaxed_u64(&disk.acked) & feature:",
        "if feature == 0:",
        "5.2.6: DISCARD only where it was negotiated",
        BLOCK,
    ),
    Mutant(
        "bytes-of-the-next-sector",
        REQUEST,
        "        r.offset = sector << SECTOR_SHIFT\n        r.len = len",
        "        r.offset = (sector << SECTOR_SHIFT) + (512 if sector == 1 else 0)\n        r.len = len",
        "5.2.6: sector is where the data is",
        BLOCK,
    ),
    # Frames (5.1.6).
    Mutant(
        "one-buffer-too-many",
        RX,
        "p.rx_header.num_buffers = <uint16_t>(i - p.held_at)",
        "p.rx_header.num_buffers = <uint16_t>(i - p.held_at + 1)",
        "5.1.6.4: num_buffers is how many were used",
        NET,
    ),
    Mutant(
        "received-length-one-more",
        RX,
        "        split_push(q, h.head, part)\n",
        "        split_push(q, h.head, part + 1)\n",
        "2.7.8.2: len is header and frame",
        NET,
    ),
    Mutant(
        "always-twelve-bytes",
        HEADER,
        "return 12 if mode & MODE_HDR12 else 10",
        "return 12",
        "5.1.6.1: a legacy driver's header has ten bytes",
        NET,
    ),
    Mutant(
        "checksum-beyond-the-frame",
        TX,
        "<uint32_t>h.csum_offset + 2 > frame_len",
        "<uint32_t>h.csum_offset > frame_len",
        "5.1.6.2: the checksum lies in the frame",
        NET,
    ),
    Mutant(
        "segmentation-not-negotiated",
        TX,
        "        not gso_allowed(mode, h.gso_type)\n        or not h.flags",
        "        not h.flags",
        "5.1.6.2: gso_type only as negotiated",
        NET,
    ),
    Mutant(
        "sent-frame-with-a-length",
        TX,
        "        split_push(q, head, 0)\n",
        "        split_push(q, head, 1)\n",
        "2.7.8.2: nothing is written into a frame that is sent",
        NET,
    ),
    # The session (vhost-user).
    Mutant(
        "stopped-ring-is-started",
        SESSION,
        "            vring.move(vr.Event.STOP)\n            vring.base = value\n",
        "            vring.base = value\n",
        '"Ring states": GET_VRING_BASE stops the ring',
        PROTOCOL,
    ),
    Mutant(
        "success-is-one",
        SESSION,
        "return self._reply(frame, wire.encode(U64(0)), fds)",
        "return self._reply(frame, wire.encode(U64(1)), fds)",
        '"REPLY_ACK": 0 is success',
        PROTOCOL,
    ),
    Mutant(
        "refusal-is-success",
        SESSION,
        "return self._reply(frame, wire.encode(U64(1)))",
        "return self._reply(frame, wire.encode(U64(0)))",
        '"REPLY_ACK": a request that failed is not answered with 0',
        PROTOCOL,
    ),
    Mutant(
        "reply-without-a-version",
        SESSION,
        "spec.VERSION | spec.FLAG_REPLY, payload",
        "spec.FLAG_REPLY, payload",
        '"Header": the version is 1',
        PROTOCOL,
    ),
    Mutant(
        "ring-index-may-be-the-number",
        SESSION,
        "        if index >= len(self.vrings):",
        "        if index > len(self.vrings):",
        '"A vring state description": index names a ring',
        PROTOCOL,
    ),
    Mutant(
        "configuration-reply-too-short",
        SESSION,
        "return Config(message.offset, message.size, message.flags, value)",
        "return Config(message.offset, message.size, message.flags, value[:-1])",
        '"GET_CONFIG": the reply is as long as the request',
        PROTOCOL,
    ),
    Mutant(
        "features-never-offered",
        SESSION,
        "if extra := features & ~self.offered_features:",
        "if extra := 0:",
        '"SET_FEATURES"; virtio 2.2: what was not offered is not accepted',
        PROTOCOL,
    ),
    Mutant(
        "reset-forgets-nothing",
        SESSION,
        "        self.features, self.features_set = 0, False\n        self.status, self.needs_reset = 0, False\n",
        "        self.features_set = False\n",
        '"RESET_DEVICE"; virtio 2.1: a reset makes the status 0',
        PROTOCOL,
    ),
    Mutant(
        "any-number-of-descriptors",
        VRING,
        "or num & (num - 1):",
        "or num < 0:",
        "2.7: the size of a split ring is a power of two",
        PROTOCOL,
    ),
    Mutant(
        "misaligned-rings",
        VRING,
        "        if address % align:\n",
        "        if address % 1:\n",
        "2.7: the areas of a ring are aligned",
        PROTOCOL,
    ),
    Mutant(
        "stop-disables",
        VRING,
        "            self.kick_set = self.was_enabled = False\n        elif event is Event.RESET:",
        "            self.kick_set = self.was_enabled = self.enabled = False\n        elif event is Event.RESET:",
        '"Ring states": enabled is kept whatever else happens to the ring',
        PROTOCOL,
    ),
    # The workers.
    Mutant(
        "no-late-look",
        LOOP,
        "    look_around(w, READY_LATE)\n",
        "",
        "2.7.13.4.1: a driver without its fence is found by a look some time after",
        LATE,
    ),
    Mutant(
        "late-look-used-up",
        LOOP,
        "    w.look_late = now < w.late_at\n",
        "    w.look_late = 0\n",
        "2.7.13.4.1: that look is owed since notifications were asked for, whatever woke the worker",
        LATE,
    ),
    Mutant(
        "first-queue-only",
        LOOP,
        "        if passes % LISTEN_EVERY == 0:\n",
        "        if passes == 0:\n",
        "2.7.10: a queue that never runs dry does not keep the others' notifications from being heard",
        "tests/protocol/test_fairness.py",
    ),
    # The connection.
    Mutant(
        "descriptors-left-open",
        DEVICE,
        "                    frame.close_fds()\n",
        "                    pass\n",
        '"Communication": descriptors nobody wanted are closed',
        "tests/protocol/test_life.py tests/hostile/test_socket_fds.py",
    ),
]
