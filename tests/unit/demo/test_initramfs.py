"""The newc archive (kernel: buffer-format.rst), and the order in which modules are loaded."""

import stat
from pathlib import Path

import pytest

from vhostd.demo.errors import DemoError
from vhostd.demo.initramfs import Archive
from vhostd.demo.kernel import dependencies, resolve


def entries(data):
    """What an archive holds, read as the kernel reads it."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11]]
        assert name[-1] == 0
        body = (at + 110 + fields[11] + 3) & ~3
        if name == b"TRAILER!!!\0":
            return found
        found.append((name[:-1].decode(), fields, data[body : body + fields[6]]))
        at = (body + fields[6] + 3) & ~3


def test_an_archive_holds_what_was_put_in_after_its_parents():
    """A file comes after the directories above it, with its mode, its bytes, and no padding among them."""
    archive = Archive()
    archive.file("usr/bin/tool", b"12345", 0o755)
    archive.link("bin/tool", "../usr/bin/tool")
    archive.character_device("dev/console", 5, 1)
    archive.file("usr/bin/tool", b"678", 0o755)
    found = {name: (fields, body) for name, fields, body in entries(archive.to_bytes())}
    names = list(found)
    assert names == ["usr", "usr/bin", "usr/bin/tool", "bin", "bin/tool", "dev", "dev/console"]
    assert found["usr/bin/tool"][1] == b"678"
    assert found["usr/bin/tool"][0][1] == stat.S_IFREG | 0o755
    assert found["bin/tool"][1] == b"../usr/bin/tool"
    assert found["dev/console"][0][9:11] == [5, 1]
    assert len({fields[0] for fields, _ in found.values()}) == len(names), "inode numbers differ"


def test_modules_come_after_what_they_need(tmp_path):
    """`depends=` of a module's information, over several steps; what is built in is left out."""
    files = {}
    for name, needs in {"a": "b,c-d", "b": "c-d", "c_d": "", "e": "builtin"}.items():
        files[name] = tmp_path / f"{name}.ko"
        files[name].write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")
    assert resolve(["e", "a", "b"], files, {"builtin"}) == ["e", "c_d", "b", "a"]
    assert dependencies(Path(files["a"]).read_bytes()) == ["b", "c_d"]
    with pytest.raises(DemoError, match="no module f"):
        resolve(["f"], files, set())
