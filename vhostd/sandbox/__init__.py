"""What a device process gives up, and when.

LIFE      `begin` right after the process began, `limit` before anything is opened, `lock_down` when all is open and
          before the first byte of a guest is read. Nothing is ever taken back.
OWNERS    The main thread, while it is the only one: threads inherit what it gave up.
TRUST     None is needed: a step that the kernel refuses because we never had the privilege changes nothing.
FAILURE   A step that must hold and does not (no_new_privs, not dumpable) ends the start-up with a ConfigError.
NOT HERE  Files and sockets (daemon opens them before), the service manager's own sandbox (systemd/).
"""
