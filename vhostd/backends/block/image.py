"""The file or block device behind a disk: opened, locked, measured."""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
from base64 import b32encode
from pathlib import Path

from vhostd.backends.block.host import fallocate, file_system
from vhostd.backends.block.options import BlockOptions
from vhostd.errors import BackendError, ConfigError
from vhostd.fds import Fd
from vhostd.spec import blk

BLKGETSIZE64 = 0x80081272
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_ZERO_RANGE = 16

# Where a file may be mapped: ext4 and its kin, XFS, tmpfs. Their pages come from this host's own disk or memory, and a
# store into an allocated one needs no room that could be missing when it is too late to say so.
MAPPABLE = frozenset({0xEF53, 0x58465342, 0x01021994})

# What a file starts with (offset, bytes) whose guest would see the container instead of the disk in it.
_MAGIC = (
    ("qcow2", 0, b"QFI\xfb"),
    ("QED", 0, b"QED\0"),
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VHDX", 0, b"vhdxfile"),
    ("VHD", 0, b"conectix"),
    ("VDI", 64, b"\x7f\x10\xda\xbe"),
    ("Parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", 0, b"WithouFreSpacExt"),
)


class Image:
    """An opened and locked image.

    fd: for the engines. size: bytes, a multiple of 512. block_size: the smallest unit that may be written, in bytes.
    physical_block_size: bytes. can_punch, can_zero: what fallocate(2) can do there. memory_align: bytes that direct
    transfers must be aligned to; 1 when the page cache is used.
    """

    def __init__(self, options: BlockOptions) -> None:
        self.path = options.image
        self.fd = _open(options)
        try:
            status = os.fstat(self.fd.number)
            self.is_device = stat.S_ISBLK(status.st_mode)
            self.size = self.measure()
            _refuse_containers(self.fd.number, options)
            _lock(self.fd.number, options)
            self.block_size, self.physical_block_size = self._blocks(options)
            self.memory_align = self.block_size if options.direct else 1
            # A clone is another inode, a rename is not: that is what a serial number should follow.
            self.identity = (
                status.st_rdev if self.is_device else status.st_dev,
                0 if self.is_device else status.st_ino,
            )
            self.can_punch = self.can_zero = False
            if not options.read_only:
                self.can_punch = self._can(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
                self.can_zero = self._can(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)
        except BaseException:
            self.fd.close()
            raise

    @property
    def can_map(self) -> bool:
        """Whether a mapping serves as well as reads and writes do: a file, on a file system known for it."""
        return not self.is_device and file_system(self.fd.number) in MAPPABLE

    def measure(self) -> int:
        """Return the size in bytes as it is now. ConfigError when it cannot be a disk's."""
        if self.is_device:
            raw = fcntl.ioctl(self.fd.number, BLKGETSIZE64, b"\0" * 8)
            size = int(struct.unpack("=Q", raw)[0])
        else:
            size = os.fstat(self.fd.number).st_size
        if size == 0:
            raise ConfigError(
                f"{self.path}: the image is empty: make it as large as the disk, with truncate -s 10G {self.path}"
            )
        if size % blk.SECTOR_LEN:
            raise ConfigError(
                f"{self.path}: {size} bytes are not a whole number of 512-byte sectors: "
                f"truncate -s {size - size % blk.SECTOR_LEN + blk.SECTOR_LEN} {self.path} adds what is missing"
            )
        return size

    def _blocks(self, options: BlockOptions) -> tuple[int, int]:
        logical, physical = options.block_size, options.physical_block_size
        least = 1
        if self.is_device:
            least = struct.unpack("=I", fcntl.ioctl(self.fd.number, BLKSSZGET, b"\0" * 4))[0]
            if not physical:
                physical = struct.unpack("=I", fcntl.ioctl(self.fd.number, BLKPBSZGET, b"\0" * 4))[0]
        if options.direct:
            least = max(least, self._direct_unit())
        if options.direct and logical < least:
            raise ConfigError(
                f"{self.path}: direct transfers there come in {least} bytes, and the guest is told {logical}: "
                f"add --block-size {least}, or leave --direct away"
            )
        return logical, max(physical or (4096 if not self.is_device else logical), logical)

    def _direct_unit(self) -> int:
        """Find the smallest direct read that works, in bytes."""
        with mmap.mmap(-1, 8192) as buffer:
            for unit in (512, 1024, 2048, 4096):
                with contextlib.suppress(OSError), memoryview(buffer) as view, view[unit : 2 * unit] as part:
                    os.preadv(self.fd.number, [part], 0)
                    return unit
        raise ConfigError(f"{self.path}: direct reads fail there: leave --direct away")

    def _can(self, mode: int) -> bool:
        """Whether fallocate(2) knows `mode` here: asked beyond the end of a file, where there is nothing to lose."""
        if self.is_device:
            return True  # the kernel's generic code zeroes by itself where a device cannot
        return fallocate(self.fd.number, mode, self.size, self.block_size) == 0

    def default_serial(self) -> str:
        """Return 20 characters that name this image, the same at each start, and no other."""
        digest = hashlib.sha256(b"vhostd serial %d:%d" % self.identity).digest()
        return b32encode(digest)[:20].decode("ascii")

    def close(self) -> None:
        """Close it, which gives up the lock."""
        self.fd.close()


def _open(options: BlockOptions) -> Fd:
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDONLY if options.read_only else os.O_RDWR)
    path = Path(options.image)
    try:
        mode = path.stat().st_mode  # before the open: opening some device files does things
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise ConfigError(f"{path}: neither a file nor a block device, so it cannot be a disk")
        if stat.S_ISBLK(mode) and not options.read_only:
            flags |= os.O_EXCL  # refuses what is mounted
        if options.direct:
            flags |= os.O_DIRECT
        fd = Fd(os.open(path, flags))
    except OSError as error:
        raise ConfigError(_why_not_open(path, options, error)) from None
    if stat.S_IFMT(os.fstat(fd.number).st_mode) != stat.S_IFMT(mode):
        fd.close()
        raise ConfigError(f"{path}: was replaced while it was opened")
    return fd


def _why_not_open(path: Path, options: BlockOptions, error: OSError) -> str:
    advice = {
        errno.ENOENT: f"make it with: truncate -s 10G {path}",
        errno.EACCES: "give this user access to it" + ("" if options.read_only else ", or serve it with --read-only"),
        errno.EPERM: "give this user access to it" + ("" if options.read_only else ", or serve it with --read-only"),
        errno.EROFS: "serve it with --read-only",
        errno.EBUSY: "it is mounted or in use: unmount it first",
        errno.EINVAL: "direct transfers are not possible there: leave --direct away" if options.direct else "",
    }.get(error.errno or 0, "")
    return f"{path}: cannot be opened: {error.strerror}" + (f": {advice}" if advice else "")


def _refuse_containers(fd: int, options: BlockOptions) -> None:
    """Refuse a disk image of another format: as raw bytes its guest would find no disk in it, and could forge one."""
    if options.format == "raw":
        return
    with mmap.mmap(-1, 4096) as buffer:  # page-aligned, as direct reads want it
        with memoryview(buffer) as view:
            try:
                os.preadv(fd, [view], 0)
            except OSError as error:
                raise BackendError(f"{options.image}: cannot be read", error) from error
        head = bytes(buffer[:512])
    for name, offset, magic in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            raise ConfigError(
                f"{options.image}: looks like a {name} image, and vhostd serves raw ones: convert it with "
                f"qemu-img convert -O raw {options.image} NEW, or, if its guest wrote these bytes itself, add "
                "--format raw"
            )


def _lock(fd: int, options: BlockOptions) -> None:
    """Take an open-file-description lock on every byte: QEMU's own locks lie in the same range and exclude us, too."""
    kind = fcntl.F_RDLCK if options.read_only else fcntl.F_WRLCK
    order = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            what = "writes to it" if options.read_only else "uses it"
            raise ConfigError(
                f"{options.image}: another process {what}: a disk has one writer; stop the other one (fuser -v "
                f"{options.image} names it)"
            ) from None
        raise BackendError(f"{options.image}: cannot be locked", error) from error
