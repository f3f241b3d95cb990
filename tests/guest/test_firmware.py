"""SeaBIOS and iPXE have virtio drivers of their own, by other hands than Linux's: they boot from our devices."""

from pathlib import Path

import pytest

from tests.guest.lab import GUEST_ADDRESS, HOST_ADDRESS, MIB, Lab, file_digest, sha256
from tests.guest.markers import both
from tests.guest.netboot import NetBoot
from vhostd.demo.programs import output_of


@both
async def test_seabios_boots_reads_and_writes(lab: Lab, legacy: bool) -> None:
    """The firmware's disk service (int 13h), polled and without interrupts, reads and writes what the image holds."""
    code, sector = lab.name("boot-object"), lab.name("boot-sector")
    await output_of("as", "--32", "-o", code, Path(__file__).with_name("boot_sector.S"))
    await output_of("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", sector, code)
    image = lab.image(4)
    content = bytearray(image.read_bytes())
    content[:512] = sector.read_bytes()
    image.write_bytes(content)
    disk = await lab.disk(image, legacy=legacy)
    disk.properties["bootindex"] = 1
    machine = await lab.firmware(disk)
    found = await machine.guest.until(rb"@@BOOT(.{16384})@@(DONE|FAIL)", 30)
    assert found[2] == b"DONE"
    assert sha256(found[1]) == sha256(content[512 : 33 * 512])
    content[64 * 512 : 96 * 512] = content[512 : 33 * 512]
    assert file_digest(image) == sha256(content)
    assert image.stat().st_size == 4 * MIB


@pytest.mark.root
@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
async def test_ipxe_boots_linux_over_the_card(lab: Lab, legacy: bool) -> None:
    """iPXE takes a lease by DHCP, its script by TFTP, kernel and initramfs by HTTP; then Linux boots from them."""
    nic, namespace = await lab.nic(boot_rom=True, legacy=legacy, properties={"bootindex": 1})
    words = lab.images.config().command()
    append = words[words.index("-append") + 1]
    script = f"""#!ipxe
kernel http://{HOST_ADDRESS}/vmlinuz {append}
initrd http://{HOST_ADDRESS}/initramfs
boot
"""
    files = {
        "boot.ipxe": script.encode(),
        "vmlinuz": lab.images.kernel.read_bytes(),
        "initramfs": lab.images.initramfs.read_bytes(),
    }
    server = NetBoot(namespace, "tap0", HOST_ADDRESS, GUEST_ADDRESS, files)
    async with server.serving():
        machine = await lab.firmware(nic, console=True)
        await machine.guest.ready(100)
        assert server.seen[0] == "dhcp"
        assert server.seen[-3:] == ["tftp boot.ipxe", "http vmlinuz", "http initramfs"]
        modules = sorted((lab.images.kernel.parent).glob("*.ko"))
        sums = (await machine.guest.run("cd /modules; sha256sum *.ko")).split()[::2]
        assert sums == [file_digest(module) for module in modules]
