"""`vhostd demo`, as a newcomer runs it."""

import io

import pytest

from tests.guest import peers
from tests.guest.lab import Images
from vhostd.demo.errors import DemoError
from vhostd.demo.programs import output_of
from vhostd.demo.show import Report, Show


@pytest.mark.root
async def test_the_demo_verifies_all_and_says_so(images: Images) -> None:
    """It ends with 0 after it has read, written, made a file system, pinged, and sent both ways."""
    said = await output_of(*peers.vhostd("demo", "--cache", images.cache), deadline=110)
    assert "✗" not in said
    for claim in (
        "64 MiB read and verified",
        "16 MiB written and verified",
        "files verified, e2fsck finds it clean in the guest and on the host",
        "20 of 20 answered",
        "from the host to the guest: verified",
        "from the guest to the host: verified",
        "every byte is where it belongs",
    ):
        assert claim in said


@pytest.mark.root
async def test_the_demo_fails_when_a_byte_is_wrong(images, tmp_path, monkeypatch) -> None:
    """One byte of the image changed behind its back: it ends with an error that names what differs."""
    serve = Show._serve

    async def spoil(self, image, namespace):
        with image.open("r+b") as file:
            file.seek(12345678)
            byte = file.read(1)
            file.seek(12345678)
            file.write(bytes([byte[0] ^ 1]))
        return await serve(self, image, namespace)

    monkeypatch.setattr(Show, "_serve", spoil)
    said = io.StringIO()
    with pytest.raises(DemoError, match="the pattern is not what it should be"):
        await Show(images.cache, tmp_path, Report(said), "tcg,thread=multi").run()
    assert "✗ the guest reads the whole disk" in said.getvalue()
