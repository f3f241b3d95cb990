"""The lines to paste: how a device is attached to QEMU, and to a libvirt domain."""

from typing import Literal
from xml.sax.saxutils import quoteattr


def qemu(kind: Literal["disk", "net"], name: str, path: str, queues: int, *, connects: bool = False) -> str:
    """Return QEMU's flags; guest memory must be shared (`share=on`), or the back-end cannot see it.

    queues: request queues or queue pairs, 0 when QEMU may choose. connects: we connect, so QEMU listens.
    """
    ident = name.replace(".", "-")
    if not ident[0].isalpha():  # as QEMU wants its ids
        ident = f"{kind}-{ident}"
    side = "server=on,wait=off" if connects else "reconnect=1"
    chardev = f"-chardev socket,id={ident},path={path.replace(',', ',,')},{side}"
    if kind == "disk":
        count = f",num-queues={queues}" if queues else ""
        return f"{chardev} -device vhost-user-blk-pci,chardev={ident}{count}"
    count = f",queues={queues}" if queues > 1 else ""
    vectors = f",mq=on,vectors={2 * queues + 2}" if queues > 1 else ""
    return (
        f"{chardev} -netdev vhost-user,id={ident}-dev,chardev={ident}{count} "
        f"-device virtio-net-pci,netdev={ident}-dev{vectors}"
    )


def memory(size: str) -> str:
    """Return QEMU's flags for guest memory of that size (QEMU's words: 2G) that a back-end can map."""
    return f"-object memory-backend-memfd,id=mem,size={size},share=on -machine memory-backend=mem"


LIBVIRT_MEMORY = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"


def libvirt(kind: Literal["disk", "net"], path: str, queues: int, *, connects: bool = False, number: int = 0) -> str:
    """Return the element of a domain's <devices>; the domain needs shared memory, too. number: which disk it is."""
    place = quoteattr(path)
    if kind == "disk":
        count = f" queues='{queues}'" if queues else ""
        return (
            "<disk type='vhostuser' device='disk'>\n"
            f"  <driver name='qemu' type='raw'{count}/>\n"
            f"  <source type='unix' path={place}><reconnect enabled='yes' timeout='1'/></source>\n"
            f"  <target dev='{_disk_name(number)}' bus='virtio'/>\n"
            "</disk>"
        )
    driver = f"<driver queues='{queues}'/>" if queues > 1 else ""
    mode, reconnect = ("server", "") if connects else ("client", "<reconnect enabled='yes' timeout='1'/>")
    return (
        "<interface type='vhostuser'>\n"
        f"  <source type='unix' path={place} mode='{mode}'>{reconnect}</source>\n"
        f"  <model type='virtio'/>{driver}\n"
        "</interface>"
    )


def _disk_name(number: int) -> str:
    """Return vda, vdb, ... vdz, vdaa, ...: the name of the disk of that number, from 0."""
    letters = ""
    number += 1
    while number:
        number, last = divmod(number - 1, 26)
        letters = chr(ord("a") + last) + letters
    return f"vd{letters}"
