"""Many devices, each a process of its own: made, watched, asked, started again.

LIFE      The zygote is forked first, before there is an event loop or a thread. It imports what device processes need
          and forks one when it is told to, so that a start costs no imports and the interpreter's pages are shared.
          A device that ends is started again after a growing pause; when the supervisor ends, so do all.
OWNERS    The supervisor owns the listening sockets: while a device process is replaced, front-ends wait in the
          socket's queue. The zygote owns the processes: only it waits for them, so only it may signal them.
TRUST     A guest may own its device's process. From there come the answers to control commands, nothing else; the
          supervisor reads no vhost-user message and maps no guest memory.
FAILURE   A device that cannot start the first time ends the whole start-up, with its exit code. Later it is tried again
          for ever. A device that does not answer its watchdog is killed. The zygote's end is the supervisor's.
NOT HERE  What a device process does (daemon), the commands (control/).
"""
