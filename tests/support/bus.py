"""A PCI bus with the imitated guest's device on it, which writes down every register access (E.1, E.2).

A line is the access, the offset, and what was written: `W8 12 <- 07`. Offsets are of BAR0 in a legacy device, of the
common configuration in a modern one; `dev+0c` is device configuration, and `msix` the moment vectors are on.
"""

from tests.support.paper import Paper


class Bus(Paper):
    """`generation` of the driver, `legacy` or not; both decide what is accessed, in what order."""

    def __init__(self, guest, offered=(1 << 64) - 1, config=b""):
        super().__init__(offered, config)
        self.guest = guest
        self.lines = []
        self.msix = False
        self.selected = None
        self.status_byte = 0

    def read(self, width, at):
        self.lines.append(f"R{width} {at:02x}" if isinstance(at, int) else f"R{width} {at}")

    def write(self, width, at, value):
        self.lines.append(f"W{width} {at:02x} <- {value:0{width // 4}x}")

    def dev(self, offset):
        return (0x18 if self.msix else 0x14) + offset if self.guest.legacy else f"dev+{offset:02x}"

    def status(self, bits):
        at = 0x12 if self.guest.legacy else 0x14
        self.read(8, at)
        self.status_byte |= bits
        self.write(8, at, self.status_byte)

    def select(self, index):
        if self.guest.generation == 2026 and self.selected == index:
            return
        self.selected = index
        self.write(16, 0x0E if self.guest.legacy else 0x16, index)

    def negotiated(self, features):
        super().negotiated(features)
        self.write(8, 0x12 if self.guest.legacy else 0x14, 0)
        self.status(1)
        self.status(2)
        if self.guest.legacy:
            self.read(32, 0)
            self.write(32, 4, features)
            return
        for word in (1, 0):
            self.write(32, 0, word)
            self.read(32, 4)
        for word in (1, 0):
            self.write(32, 8, word)
            self.write(32, 0xC, features >> 32 * word & 0xFFFFFFFF)
        self.status(8)
        self.read(8, 0x14)

    def config(self, offset, length):
        self.read(8 * length, self.dev(offset))
        return super().config(offset, length)

    def write_config(self, offset, data):
        for n, _ in enumerate(data):
            self.lines.append(f"W8 {self.dev(offset + n):02x}" if self.guest.legacy else f"W8 {self.dev(offset + n)}")

    def generation(self):
        self.read(8, 0x15)
        return 0

    def queue(self, ring):
        super().queue(ring)
        self.select(ring.index)
        if self.guest.legacy:
            self.read(16, 0x0C)
            if self.guest.generation == 2019:
                self.select(ring.index)
            self.write(32, 8, ring.gpa >> 12)
            return
        self.read(16, 0x18)
        self.write(16, 0x18, ring.size)
        self.read(16, 0x1E)
        for at, gpa in zip((0x20, 0x28, 0x30), ring.parts, strict=True):
            self.write(32, at, gpa & 0xFFFFFFFF)
            self.write(32, at + 4, gpa >> 32)

    def running(self, features, rings, indexes):
        super().running(features, rings, indexes)
        if not self.guest.legacy:
            for index in indexes:
                self.select(index)
                self.write(16, 0x1C, 1)
        self.status(4)

    def vectors(self, rings):
        self.msix = True
        self.lines.append("msix")
        newer = self.guest.generation == 2026
        at = 0x16 if self.guest.legacy else 0x1A
        handled = [ring for ring in rings if not (self.guest.device == "net" and ring.index >= 2 * self.guest.pairs)]
        for vector, ring in enumerate(handled, start=int(newer)):
            self.select(ring.index)
            self.write(16, at, vector)
            self.read(16, at)
        if newer:  # the handler of configuration changes has vector 0
            at = 0x14 if self.guest.legacy else 0x10
            self.write(16, at, 0)
            self.read(16, at)
        super().vectors(rings)
