"""The order of imports, for the files that import-linter cannot see: compiled modules obey the same list.

The list is read from pyproject.toml, so there is one of it.
"""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vhostd"
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in CONFIG["contracts"]}
LAYERS = [{room.strip(" ()") for room in re.split(r"[|:]", row)} for row in CONTRACTS["imports run down"]["layers"]]
LAYERS[-1] |= {"atomics", "clock"}  # .pxd alone: import-linter knows no such modules
IMPORT = re.compile(r"^\s*(?:from\s+(vhostd[\w.]*)\s+c?import\s+\(?([\w, ]+)|c?import\s+(vhostd[\w.]+))", re.MULTILINE)
COMPILED = sorted(path for suffix in ("pyx", "pxd") for path in PACKAGE.rglob(f"*.{suffix}"))


def level(room):
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    raise AssertionError(f"room {room} stands in no layer of pyproject.toml")


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    for match in IMPORT.finditer(path.read_text()):
        module = match[1] or match[3]
        if module == "vhostd":
            yield from (name.strip() for name in match[2].split(",") if name.strip())
        else:
            yield module.split(".")[1]


@pytest.mark.parametrize("path", COMPILED, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_of_compiled_modules_run_down(path):
    """STYLE: imports run down the list only; rooms named together do not know each other."""
    mine = room_of(path)
    for other in imports(path):
        if other != mine:
            assert level(other) > level(mine), f"{path.name} in {mine} imports {other}"


def test_the_driver_shares_no_code_with_the_device():
    """STYLE: a tester must not share the code it tests."""
    forbidden = {
        name.split(".")[1] for contract in CONTRACTS.values() for name in contract.get("forbidden_modules", ())
        if name.startswith("vhostd.") and "vhostd.driver" in contract["source_modules"]
    }  # fmt: skip
    assert {"queues", "devices", "backends"} <= forbidden
    for path in COMPILED:
        if room_of(path) == "driver":
            assert not forbidden & set(imports(path))


def test_only_atomics_spells_an_atomic():
    """STYLE: loads, stores and fences are named by their order, in one file."""
    spelled = [path.name for path in COMPILED if re.search(r"__atomic_|__sync_", path.read_text())]
    # The guard runs in a signal handler, in C: it cannot cimport.
    assert sorted(spelled) == ["atomics.pxd", "guard.pyx"]


def test_the_data_path_takes_no_gil():
    """STYLE: below the one `with nogil` there is no `with gil`."""
    assert [path.name for path in COMPILED if re.search(r"with gil\b", path.read_text())] == []


def test_every_compiled_module_has_a_stub():
    """Typed: a stub beside each, which stubtest checks."""
    missing = [path.name for path in PACKAGE.rglob("*.pyx") if not path.with_suffix(".pyi").exists()]
    assert missing == []


def test_each_package_opens_with_its_theory():
    """STYLE: a theory statement opens each package."""
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE and path.parent.name not in ("cli",):
            text = path.read_text()
            assert text.startswith('"""'), path
            assert "NOT HERE" in text, path
