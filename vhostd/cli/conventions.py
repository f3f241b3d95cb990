"""vhost-user-blk, vhost-user-net: the programs of the vhost-user document's "Backend program conventions".

A management layer finds them through the JSON files in share/qemu/vhost-user, and calls them with --socket-path or
--fd, and --print-capabilities; a disk, with --blk-file and --read-only. They stay in the foreground, end early with a
message when they cannot start, and quickly on SIGTERM. Every setting of `vhostd blk` and `vhostd net` is a flag here.
"""

import json
import sys

from vhostd.cli.flags import Parser, UsageError, add_settings, chosen, make
from vhostd.cli.main import CAPABILITIES, guarded
from vhostd.config import Disk, Net


def block_main() -> int:
    """Be vhost-user-blk."""
    return guarded(lambda: _block(sys.argv[1:]))


def net_main() -> int:
    """Be vhost-user-net."""
    return guarded(lambda: _net(sys.argv[1:]))


def _block(words: list[str]) -> int:
    if "--print-capabilities" in words:
        print(json.dumps(CAPABILITIES["block"]))
        return 0
    parser = Parser(prog="vhost-user-blk", description="vhost-user back-end for one disk.")
    parser.add_argument("--blk-file", dest="image", metavar="PATH", required=True, help="image file or block device")
    return _run(parser, Disk, words)


def _net(words: list[str]) -> int:
    if "--print-capabilities" in words:
        print(json.dumps(CAPABILITIES["net"]))
        return 0
    return _run(Parser(prog="vhost-user-net", description="vhost-user back-end for one network card."), Net, words)


def _run(parser: Parser, kind: type[Disk] | type[Net], words: list[str]) -> int:
    from vhostd.cli.serve import add_doors, run

    add_settings(parser, kind, leave_out={"image", "connect"})
    add_doors(parser)
    found = parser.parse_args(words)
    given = {"name": "disk" if kind is Disk else "net", **chosen(found, kind)}
    if (found.fd is None) == ("socket_path" not in given):
        raise UsageError("give one of --socket-path and --fd")
    return run(make(kind, given), found, control=found.control is not None)
