"""Feature negotiation (virtio 2.2, 5.1.3, 5.2.3, 6; vhost-user, "Feature negotiation")."""

from vhostd.driver.conformance.case import BLOCK, NET, BlkFeature, Level, NetFeature, RingFeature, Row, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check
from vhostd.protocol.messages import U64
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

R = FrontendRequest
F = RingFeature
N = NetFeature
BASIC = int(F.VERSION_1 | F.PROTOCOL_FEATURES)


@case("VU-FEAT-01", 'vhost-user, "Front-end message types", VHOST_USER_GET_FEATURES')
def the_same_each_time(check: Check) -> None:
    """GET_FEATURES is answered the same on each connection and each time."""
    for _ in range(2):
        frontend = check.connect()
        for _ in range(3):
            check.equal(frontend.ask_u64(R.GET_FEATURES), check.offered, "features")
        frontend.close()


@case("VU-FEAT-02", "virtio 6.2")
def version_1(check: Check) -> None:
    """A device MUST offer VIRTIO_F_VERSION_1."""
    check.expect(check.offered & F.VERSION_1, "VERSION_1 among the features", f"features {check.offered:#x}")


@case("VU-FEAT-03", "virtio 2.2, 6", rows={str(bit): 1 << bit for bit in (25, 31, *range(44, 50))})
def reserved_bits(check: Check, bit: int) -> None:
    """Feature bits that are reserved for future extensions are not offered."""
    check.expect(not check.offered & bit, "the bit not to be offered", f"features {check.offered:#x}")


_CSUM, _GUEST_CSUM = int(N.CSUM), int(N.GUEST_CSUM)
_GUEST_TSO, _HOST_TSO = int(N.GUEST_TSO4 | N.GUEST_TSO6), int(N.HOST_TSO4 | N.HOST_TSO6)
DEPENDENT: dict[str, tuple[int, int]] = {
    "guest-tso4": (N.GUEST_TSO4, _GUEST_CSUM),
    "guest-tso6": (N.GUEST_TSO6, _GUEST_CSUM),
    "guest-ecn": (N.GUEST_ECN, _GUEST_TSO),
    "guest-ufo": (N.GUEST_UFO, _GUEST_CSUM),
    "guest-uso4": (N.GUEST_USO4, _GUEST_CSUM),
    "guest-uso6": (N.GUEST_USO6, _GUEST_CSUM),
    "host-tso4": (N.HOST_TSO4, _CSUM),
    "host-tso6": (N.HOST_TSO6, _CSUM),
    "host-ecn": (N.HOST_ECN, _HOST_TSO),
    "host-ufo": (N.HOST_UFO, _CSUM),
    "host-uso": (N.HOST_USO, _CSUM),
    "rsc-ext": (N.RSC_EXT, _HOST_TSO),
}


@case(
    "VU-FEAT-04",
    "virtio 2.2.2, 5.1.3.1",
    kinds=NET,
    rows={name: Row((offer, need), features=int(offer)) for name, (offer, need) in DEPENDENT.items()},
)
def dependent_features(check: Check, row: tuple[int, int]) -> None:
    """The device MUST NOT offer a feature which requires another feature which was not offered."""
    check.expect(check.offered & row[1], "one of the features it requires", f"features {check.offered:#x}")


@case("VU-FEAT-05", "virtio 5.2.5.2", kinds=BLOCK, level=Level.SHOULD)
def flush_is_offered(check: Check) -> None:
    """Devices SHOULD always offer VIRTIO_BLK_F_FLUSH."""
    check.expect(check.offered & BlkFeature.FLUSH, "FLUSH among the features", f"features {check.offered:#x}")


@case("VU-FEAT-06", "virtio 5.2.5.2", kinds=BLOCK, features=int(BlkFeature.CONFIG_WCE))
def flush_with_config_wce(check: Check) -> None:
    """Devices MUST offer VIRTIO_BLK_F_FLUSH if they offer VIRTIO_BLK_F_CONFIG_WCE."""
    check.expect(check.offered & BlkFeature.FLUSH, "FLUSH among the features", f"features {check.offered:#x}")


RING_SETS = {
    "version-1": BASIC,
    "indirect": Row(BASIC | int(F.INDIRECT_DESC), features=int(F.INDIRECT_DESC)),
    "event-idx": Row(BASIC | int(F.EVENT_IDX), features=int(F.EVENT_IDX)),
    "both": Row(BASIC | int(F.INDIRECT_DESC | F.EVENT_IDX), features=int(F.INDIRECT_DESC | F.EVENT_IDX)),
    "all": ALL_FEATURES,
}


@case("VU-FEAT-07", "virtio 2.2.2", level=Level.SHOULD, rows=RING_SETS)
def any_subset(check: Check, features: int) -> None:
    """The device SHOULD accept any valid subset of features the driver accepts."""
    with check.guest(features=features) as guest:
        guest.works(6)


_EACH_BLK = {f.name.lower().replace("_", "-"): Row(int(f), features=int(f)) for f in BlkFeature if f.name}
_EACH_NET = {f.name.lower().replace("_", "-"): Row(int(f), features=int(f)) for f in NetFeature if f.name}


@case("VU-FEAT-08", "virtio 2.2.2", level=Level.SHOULD, kinds=BLOCK, rows=_EACH_BLK)
def disk_without_one(check: Check, feature: int) -> None:
    """The device SHOULD accept any valid subset of features: all but this one."""
    with check.guest(features=ALL_FEATURES & ~feature) as guest:
        guest.works(2)


@case("VU-FEAT-09", "virtio 2.2.2", level=Level.SHOULD, kinds=NET, rows=_EACH_NET)
def card_without_one(check: Check, feature: int) -> None:
    """The device SHOULD accept any valid subset of features: all but this one and those that require it."""
    left = ALL_FEATURES & ~feature
    for _ in range(2):
        for offer, need in DEPENDENT.values():
            if not left & need:
                left &= ~int(offer)
    with check.guest(features=left) as guest:
        guest.works(2)


@case(
    "VU-FEAT-10",
    "virtio 2.2.2, 3.1.1",
    level=Level.SHOULD,
    protocol=ProtocolFeature.REPLY_ACK,
    rows={str(bit): Row(1 << bit, lacks=1 << bit) for bit in (31, 41, 48, 63)},
)
def features_that_were_not_offered(check: Check, bit: int) -> None:
    """What a driver accepts was offered: any other SET_FEATURES fails."""
    frontend = check.negotiated()
    answer = check.acked(frontend, R.SET_FEATURES, U64(frontend.features | bit))
    check.expect(answer != 0, "an answer other than 0, or a closed connection", "0: accepted")


@case("VU-FEAT-11", 'vhost-user, "Front-end message types", VHOST_USER_SET_FEATURES')
def set_features_while_running(check: Check) -> None:
    """SET_FEATURES with the same bits, while rings run, changes nothing: QEMU sends it for each queue pair."""
    with check.guest() as guest:
        for _ in range(3):
            guest.works(2)
            guest.frontend.set_features()
        guest.works(2)


@case("VU-FEAT-12", 'vhost-user, "Front-end message types", VHOST_USER_SET_FEATURES')
def set_features_again_and_again(check: Check) -> None:
    """SET_FEATURES may come several times before the rings start: the last one counts."""
    with check.guest(start=False) as guest:
        guest.frontend.set_features(BASIC)
        guest.frontend.set_features()
        guest.session.start()
        guest.works(4)


@case("VU-FEAT-13", "virtio 2.2")
def other_features_after_a_stop(check: Check) -> None:
    """The next driver of a device accepts other features than the last on one connection: firmware, then a kernel."""
    with check.guest(features=BASIC, protocol_features=ProtocolFeature.MQ | ProtocolFeature.CONFIG) as guest:
        guest.works(2)
        guest.session.stop()
        guest.frontend.set_features(guest.frontend.features | (check.offered & int(F.INDIRECT_DESC)))
        guest.session.start()
        guest.works(2)
