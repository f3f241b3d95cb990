"""The image: what is opened, locked and told, and what is refused with advice (HOSTILE F7, F66)."""

import fcntl
import os
import struct
import subprocess
import sys

import pytest

from vhostd.backends.block.image import Image
from vhostd.backends.block.options import BlockOptions
from vhostd.errors import ConfigError


def make(path, length=1 << 20, head=b""):
    with path.open("wb") as file:
        file.write(head)
        file.truncate(length)
    return str(path)


@pytest.fixture
def image(tmp_path):
    return make(tmp_path / "disk.raw")


def refused(match, image, **options):
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=match) as caught:
        Image(BlockOptions(image=image, **options))
    assert str(image) in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_file_is_opened(image):
    opened = Image(BlockOptions(image=image))
    assert opened.size == 1 << 20
    assert opened.block_size == 512
    assert opened.physical_block_size == 4096
    opened.close()


def test_F66_what_is_no_disk_is_refused(tmp_path):
    """HOSTILE F66: directory, FIFO, device file, nothing."""
    os.mkfifo(tmp_path / "fifo")
    refused("neither a file nor a block device", tmp_path)
    refused("neither a file nor a block device", tmp_path / "fifo")
    refused("neither a file nor a block device", "/dev/null")
    refused(r"truncate -s 10G", tmp_path / "missing")


@pytest.mark.parametrize(
    ("length", "advice"), [(0, "truncate -s 10G"), (513, "truncate -s 1024"), (1, "truncate -s 512")]
)
def test_F66_a_size_that_is_no_disks(tmp_path, length, advice):
    """HOSTILE F66: empty, or not whole sectors."""
    refused(advice, make(tmp_path / "odd", length))


def test_a_link_to_an_image_is_followed(tmp_path, image):
    """Disks have stable names that are links: /dev/disk/by-id."""
    (tmp_path / "link").symlink_to(image)
    opened = Image(BlockOptions(image=str(tmp_path / "link")))
    opened.close()


def test_F7_a_disk_has_one_writer(image):
    """HOSTILE F7: an open-file-description lock, not one of the process."""
    first = Image(BlockOptions(image=image))
    refused("one writer", image)
    refused("one writer", image, read_only=True)
    first.close()
    again = Image(BlockOptions(image=image))
    again.close()


def test_readers_share(image):
    first = Image(BlockOptions(image=image, read_only=True))
    second = Image(BlockOptions(image=image, read_only=True))
    refused("one writer", image)
    first.close()
    second.close()


def test_qemu_is_kept_out(image):
    """QEMU locks single bytes with the same kind of lock."""
    opened = Image(BlockOptions(image=image))
    got = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", image], capture_output=True, text=True, timeout=30
    )
    assert got.returncode != 0
    assert "lock" in got.stderr
    opened.close()


def test_another_process_is_kept_out(image):
    opened = Image(BlockOptions(image=image))
    code = (
        "import fcntl, os, struct, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))\n"
    )
    got = subprocess.run([sys.executable, "-c", code, image], capture_output=True, text=True, timeout=30)
    assert "Resource temporarily unavailable" in got.stderr
    opened.close()


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("qcow2", b"QFI\xfb\0\0\0\3"),
        ("QED", b"QED\0"),
        ("VMDK", b"KDMV\1\0\0\0"),
        ("VMDK", b"# Disk DescriptorFile\n"),
        ("VHDX", b"vhdxfile"),
        ("VHD", b"conectix"),
        ("VDI", b"\0" * 64 + b"\x7f\x10\xda\xbe"),
    ],
)
def test_a_container_is_refused_unless_told(tmp_path, name, head):
    """GHSA-jmr4: never probe a format; but say so when the bytes look like one."""
    path = make(tmp_path / "disk", head=head)
    refused(f"looks like a {name} image", path)
    opened = Image(BlockOptions(image=path, format="raw"))
    opened.close()


def test_the_default_serial_follows_the_file_not_its_name(tmp_path, image):
    """ILLUMOS C.2: stable, unique, and a clone has another."""

    def serial(path):
        opened = Image(BlockOptions(image=str(path)))
        opened.close()
        return opened.default_serial()

    first = serial(image)
    assert len(first) == 20
    assert first.isalnum()
    assert serial(image) == first
    os.rename(image, tmp_path / "renamed")
    assert serial(tmp_path / "renamed") == first
    (tmp_path / "clone").write_bytes((tmp_path / "renamed").read_bytes())
    assert serial(tmp_path / "clone") != first


def test_direct_says_which_alignment_it_wants(image):
    opened = Image(BlockOptions(image=image, direct=True))
    assert opened.memory_align in (512, 1024, 2048, 4096)
    assert fcntl.fcntl(opened.fd.number, fcntl.F_GETFL) & os.O_DIRECT
    opened.close()


def test_the_lock_covers_every_byte(image):
    """QEMU's locks lie at bytes 100 to 203."""
    opened = Image(BlockOptions(image=image))
    fd = os.open(image, os.O_RDWR)
    for at in (0, 100, 203, 1 << 40):
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, at, 1, 0))
    os.close(fd)
    opened.close()
