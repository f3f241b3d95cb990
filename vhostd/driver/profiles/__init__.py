"""The orders in which front-ends really start, stop and restart a device, as data, and what plays them.

LIFE      A Profile is a constant. `open_profile` plays its connection and start on a back-end; what it yields is a
          Session, on which requests run and which can play the rest: stop, restart, reset, reconnect.
OWNERS    A ProfileSession owns its connection, arena and queues; `reconnect` replaces the connection, never the memory.
TRUST     As everywhere in driver/: replies are checked, refusals raise, nothing waits without a deadline.
FAILURE   Refused where the back-end says no; LocalProtocolError for an order that this front-end does not have.
NOT HERE  Code for one front-end: a step says what is sent and bears the source that says so. What is known by tracing
          says the version; what is read in a source says repository, path and function.
"""

from vhostd.driver.profiles.qemu import QEMU_7, QEMU_11
from vhostd.driver.profiles.replay import ProfileSession, open_profile, register
from vhostd.driver.profiles.rust import CLOUD_HYPERVISOR, CROSVM_VMM, FIRECRACKER_VMM
from vhostd.driver.profiles.scene import Ring, Scene, Sent
from vhostd.driver.profiles.steps import Kind, Order, Profile, Step, walk
from vhostd.driver.profiles.uml import PLAIN, UML_KERNEL
from vhostd.driver.profiles.userspace import DPDK_DRIVER, LIBBLKIO_DRIVER, SPDK_DRIVER

PROFILES: dict[str, Profile] = register(
    QEMU_7,
    QEMU_11,
    CLOUD_HYPERVISOR,
    FIRECRACKER_VMM,
    CROSVM_VMM,
    UML_KERNEL,
    LIBBLKIO_DRIVER,
    SPDK_DRIVER,
    DPDK_DRIVER,
    PLAIN,
)

__all__ = [
    "PROFILES",
    "Kind",
    "Order",
    "Profile",
    "ProfileSession",
    "Ring",
    "Scene",
    "Sent",
    "Step",
    "open_profile",
    "walk",
]
