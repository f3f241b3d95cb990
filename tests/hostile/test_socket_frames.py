"""S1 to S19: headers, lengths, pieces, and ends of the stream."""

import array
import contextlib
import socket
import struct
import time

import pytest

from tests.hostile.attack import NO_ACK, OWN_REPLY, alive, attempt, closed, ended, frame, guest, raw, u64
from vhostd.errors import DeviceGone
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, HEADER_LEN, VERSION, FrontendRequest

R = FrontendRequest
GET = frame(R.GET_FEATURES)


@pytest.mark.parametrize("version", [0, 2, 3], ids="S1-version-{}".format)
@pytest.mark.parametrize("ack", [True, False], ids=["asked", "silent"])
def test_a_version_that_is_not_1_closes(target, version, ack):
    """S1: whatever the message is, and whether or not an answer is wanted."""
    with guest(target) as bad:
        assert bad.attempt(R.SET_VRING_BASE, bytes(8), ack=ack, flags=version) == "closed"


def test_a_request_with_the_reply_flag_closes(target):
    """S2."""
    with guest(target) as bad:
        assert bad.attempt(R.GET_FEATURES, flags=VERSION | FLAG_REPLY) == "closed"


@pytest.mark.parametrize("flags", [0x11, 0xFFFFFFF1, 0x80000001], ids="S2-{:#x}".format)
def test_undefined_flags_are_let_pass(target, flags):
    """S2: and the reply does not carry them."""
    with guest(target) as odd:
        odd.frontend.send(R.GET_FEATURES, flags=flags)
        assert odd.frontend.receive().flags == VERSION | FLAG_REPLY
        assert odd.reads()


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, 65536, 4096, 2057], ids="S3-{:#x}".format)
def test_a_size_longer_than_any_message_closes_at_once(target, size):
    """S3: nothing of the body is waited for, nothing is allocated for it."""
    with guest(target, "negotiated") as bad:
        rss = resident(target)
        bad.frontend.send_bytes(frame(R.SET_MEM_TABLE, b"x" * 8, size=size))
        assert closed(bad.frontend)
        assert resident(target) - rss < 1 << 20


def resident(target):
    """Resident bytes of the daemon."""
    with open(f"/proc/{target.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


LENGTHS = {  # the payload of each request, in bytes
    R.GET_FEATURES: 0, R.SET_FEATURES: 8, R.SET_OWNER: 0, R.RESET_OWNER: 0, R.SET_MEM_TABLE: 40, R.SET_LOG_BASE: 16,
    R.SET_LOG_FD: 0, R.SET_VRING_NUM: 8, R.SET_VRING_ADDR: 40, R.SET_VRING_BASE: 8, R.GET_VRING_BASE: 8,
    R.SET_VRING_KICK: 8, R.SET_VRING_CALL: 8, R.SET_VRING_ERR: 8, R.GET_PROTOCOL_FEATURES: 0,
    R.SET_PROTOCOL_FEATURES: 8, R.GET_QUEUE_NUM: 0, R.SET_VRING_ENABLE: 8, R.SEND_RARP: 8, R.NET_SET_MTU: 8,
    R.SET_BACKEND_REQ_FD: 0, R.IOTLB_MSG: 32, R.SET_VRING_ENDIAN: 8, R.GET_CONFIG: 16, R.SET_CONFIG: 16,
    R.CREATE_CRYPTO_SESSION: 64, R.CLOSE_CRYPTO_SESSION: 8, R.POSTCOPY_ADVISE: 0, R.POSTCOPY_LISTEN: 0,
    R.POSTCOPY_END: 0, R.GET_INFLIGHT_FD: 24, R.SET_INFLIGHT_FD: 24, R.GPU_SET_SOCKET: 0, R.RESET_DEVICE: 0,
    R.VRING_KICK: 8, R.GET_MAX_MEM_SLOTS: 0, R.ADD_MEM_REG: 40, R.REM_MEM_REG: 40, R.SET_STATUS: 8, R.GET_STATUS: 0,
    R.GET_SHARED_OBJECT: 16, R.SET_DEVICE_STATE_FD: 8, R.CHECK_DEVICE_STATE: 0, R.GET_SHMEM_CONFIG: 0,
}  # fmt: skip


def test_every_request_has_a_length_here():
    """S4: the table is complete."""
    assert set(LENGTHS) == set(R)


@pytest.mark.parametrize("request_", list(R), ids=lambda r: f"S4-{r.name}")
def test_a_payload_of_another_length_is_refused(target, request_):
    """S4: -1, +1, +4 and the longest; extra bytes are never read as the next header.

    No padding that compilers add is 1 byte, or 4 behind these layouts: nothing of this is any front-end's.
    """
    lengths = {LENGTHS[request_] + more for more in (-1, 1, 4)} | {2056}
    with contextlib.ExitStack() as stack:
        bad = stack.enter_context(guest(target))
        for length in sorted(lengths - {-1}):
            if request_ is R.IOTLB_MSG and length == 31:
                continue
            # A header hides in the payload: were it read as one, there would be an answer too many.
            payload = (b"\1\0\0\0\1\0\0\0\0\0\0\0" * 200)[:length]
            outcome = bad.attempt(request_, payload)
            if outcome == "closed":
                assert request_ in OWN_REPLY or request_ not in HAS_ACK, request_.name
                bad.frontend.close()
                bad = stack.enter_context(guest(target))
            else:
                assert outcome == "refused", (length, outcome)
            assert alive(bad.frontend)
        assert bad.reads()


# Their reply has a form of its own that cannot say no, so that only closing is left.
HAS_ACK = set(R) - OWN_REPLY - {
    R.CREATE_CRYPTO_SESSION, R.POSTCOPY_ADVISE, R.POSTCOPY_END, R.GET_INFLIGHT_FD, R.GET_SHARED_OBJECT,
    R.SET_DEVICE_STATE_FD, R.CHECK_DEVICE_STATE, R.GET_SHMEM_CONFIG,
}  # fmt: skip


@pytest.mark.parametrize("request_", [0, 45, 46, 200, 0x7FFFFFFF, 0xFFFFFFFF], ids="S5-{:#x}".format)
def test_an_unknown_request_is_refused(target, request_):
    """S5: with an answer if one is wanted, else by closing."""
    with guest(target) as bad:
        assert bad.attempt(request_, b"x" * 40) == "refused"
        assert bad.reads()
        assert bad.attempt(request_, b"x" * 40, ack=False) == "closed"


@pytest.mark.parametrize(
    "request_",
    [
        R.SET_LOG_FD, R.SEND_RARP, R.NET_SET_MTU, R.IOTLB_MSG, R.SET_VRING_ENDIAN, R.CLOSE_CRYPTO_SESSION,
        R.POSTCOPY_LISTEN, R.SET_INFLIGHT_FD, R.GPU_SET_SOCKET, R.VRING_KICK, R.SET_LOG_BASE,
    ],
    ids=lambda r: f"S5-not-offered-{r.name}",
)  # fmt: skip
def test_a_request_of_a_feature_that_is_not_offered_is_refused(target, request_):
    """S5, S90 to S106, S125: migration, in-flight tracking, IOMMU and what belongs to other devices."""
    with guest(target) as bad:
        assert bad.attempt(request_, bytes(LENGTHS[request_])) == "refused"
        assert bad.reads()
        assert bad.attempt(request_, bytes(LENGTHS[request_]), ack=False) == "closed"


@pytest.mark.parametrize(
    "request_",
    [R.CREATE_CRYPTO_SESSION, R.POSTCOPY_ADVISE, R.GET_INFLIGHT_FD, R.GET_SHARED_OBJECT, R.GET_SHMEM_CONFIG],
    ids=lambda r: f"S5-not-offered-{r.name}",
)
def test_a_request_that_wants_a_value_and_is_not_offered_closes(target, request_):
    """S5, S100: there is no value, and no way to say so."""
    with guest(target) as bad:
        assert bad.attempt(request_, bytes(LENGTHS[request_])) == "closed"


@pytest.mark.parametrize("length", range(1, HEADER_LEN), ids="S6-{}-bytes".format)
def test_a_header_that_is_cut(target, length):
    """S6: the end of the stream in a header ends the session."""
    with raw(target) as connection:
        connection.sendall(GET[:length])
        connection.shutdown(socket.SHUT_WR)
        assert ended(connection)


def test_a_header_byte_by_byte(target):
    """S7."""
    with guest(target, "connected") as slow:
        for n in range(HEADER_LEN):
            slow.frontend.send_bytes(GET[n : n + 1])
            time.sleep(0.005)
        assert len(slow.frontend.receive().payload) == 8


@pytest.mark.parametrize("length", range(0, 40, 5), ids="S8-{}-bytes".format)
def test_a_payload_that_is_cut(target, length):
    """S8: and in a payload; its descriptor is closed."""
    with guest(target, "memory") as bad:
        bad.frontend.send_bytes(frame(R.SET_MEM_TABLE, bytes(length), size=40), [bad.arena.fd(bad.arena.regions[0])])
        bad.frontend._socket.shutdown(socket.SHUT_WR)
        assert closed(bad.frontend)


@pytest.mark.parametrize("at", [1, 12, 13, 19], ids="S9-{}".format)
def test_a_message_in_two_writes(target, at):
    """S9."""
    with guest(target) as split:
        whole = frame(R.SET_VRING_ENABLE, struct.pack("<II", 1, 1), flags=VERSION | FLAG_NEED_REPLY)
        split.frontend.send_bytes(whole[:at])
        time.sleep(0.01)
        split.frontend.send_bytes(whole[at:])
        assert split.frontend.receive().payload == bytes(8)


@pytest.mark.parametrize("count", [2, 10, 1000], ids="S10-{}".format)
def test_many_messages_in_one_write(target, count):
    """S10: all are handled, in order."""
    with guest(target, "negotiated") as many:
        stream = b"".join(
            frame(R.SET_VRING_BASE, struct.pack("<II", 3, n)) + frame(R.GET_VRING_BASE, struct.pack("<II", 3, 0))
            for n in range(count)
        )
        many.frontend.send_bytes(stream)
        got = [struct.unpack("<II", many.frontend.receive().payload) for _ in range(count)]
        assert got == [(3, n) for n in range(count)]


def test_descriptors_belong_to_the_message_they_came_with(target):
    """S11: a header that follows in the same segment has none of them, and its own are its own."""
    with guest(target, "memory", queues=2) as odd:
        queue = odd.queue
        call = frame(R.SET_VRING_CALL, u64(0), flags=VERSION | FLAG_NEED_REPLY)
        owner = frame(R.SET_OWNER, flags=VERSION | FLAG_NEED_REPLY)
        odd.frontend.send_bytes(call + owner, [queue.call_fd.number])
        assert odd.frontend.receive().payload == bytes(8)
        assert odd.frontend.receive().payload == bytes(8)
        # The other way round the descriptor is the first message's, which takes none.
        odd.frontend.send_bytes(owner + call, [queue.call_fd.number])
        assert odd.frontend.receive().payload != bytes(8)
        assert odd.frontend.receive().payload != bytes(8)


@pytest.mark.parametrize("request_", sorted(OWN_REPLY), ids=lambda r: f"S12-{r.name}")
def test_one_reply_where_the_message_has_its_own(target, request_):
    """S12."""
    payload = {R.GET_VRING_BASE: bytes(8), R.GET_CONFIG: struct.pack("<III", 0, 8, 0) + bytes(8)}.get(request_, b"")
    with guest(target, "negotiated") as asks:
        assert asks.attempt(request_, payload) == "done"
        assert alive(asks.frontend)  # a second reply would be taken for this one's


def test_need_reply_means_nothing_before_reply_ack(target):
    """S13."""
    with guest(target, protocol=NO_ACK) as odd:
        odd.frontend.send(R.SET_OWNER, flags=VERSION | FLAG_NEED_REPLY)
        assert alive(odd.frontend)
        assert odd.attempt(R.SET_VRING_NUM, bytes(8)) == "closed"


@pytest.mark.parametrize("how", ["read", "write", "unread", "reset"], ids="S15-{}".format)
def test_ends_of_a_connection(target, how):
    """S15: shutdown of either half, a close with replies unread, a close that resets: all end the session quietly."""
    with raw(target) as connection:
        connection.sendall(GET * 50)
        if how == "read":
            connection.shutdown(socket.SHUT_RD)
            with contextlib.suppress(OSError):
                connection.sendall(GET * 50)
        elif how == "write":
            connection.shutdown(socket.SHUT_WR)
            assert ended(connection)
        elif how == "unread":
            connection.recv(20)
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_credentials_are_nothing_to_us(target):
    """S16."""
    import os

    with guest(target, "connected") as odd:
        who = struct.pack("iII", os.getpid(), os.getuid(), os.getgid())
        odd.frontend._socket.sendmsg([GET], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
        assert len(odd.frontend.receive().payload) == 8


def test_rights_without_any_descriptor(target):
    """S17: a control block that carries nothing."""
    with guest(target, "connected") as odd:
        odd.frontend._socket.sendmsg([GET], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")])
        assert len(odd.frontend.receive().payload) == 8


def test_two_control_blocks(target):
    """S18: both are one message's descriptors, and too many for SET_OWNER."""
    with guest(target, "running") as odd, socket.socket() as one, socket.socket() as two:
        blocks = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [s.fileno()])) for s in (one, two)]
        odd.frontend._socket.sendmsg([frame(R.SET_OWNER, flags=VERSION | FLAG_NEED_REPLY)], blocks)
        assert odd.frontend.receive().payload != bytes(8)
        assert odd.reads()


def test_urgent_data(target):
    """S19: MSG_OOB is a byte like others or none at all; the session goes on or ends."""
    with guest(target, "connected") as odd:
        try:
            odd.frontend._socket.send(b"!", socket.MSG_OOB)
        except OSError:
            return  # a kernel without it
        with contextlib.suppress(DeviceGone):
            attempt(odd.frontend, R.GET_FEATURES)


def test_one_byte_after_another_in_a_thousand_messages(target):
    """S7, S10: the stream in pieces of 7 bytes."""
    with guest(target, "negotiated") as odd:
        stream = GET * 300
        for at in range(0, len(stream), 7):
            odd.frontend.send_bytes(stream[at : at + 7])
        for _ in range(300):
            assert len(odd.frontend.receive().payload) == 8
