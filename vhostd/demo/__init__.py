"""A Linux guest of our own, for `vhostd demo` and for tests: kernel, initramfs, QEMU, and a shell inside.

LIFE      A kernel is fetched and an initramfs packed once, into a cache named by their content. A Machine is one QEMU
          process: started, spoken to, closed. A snapshot is a machine saved when its shell was ready, so that the
          next one is there in a third of a second.
OWNERS    One asyncio loop runs all of it. Each process dies with the object that started it, and with us (pdeathsig).
TRUST     The guest is ours; what it prints is still only text with a bound. Nothing is fetched but the kernel, by the
          package manager of the machine and as it was set up.
FAILURE   DemoError, with the last lines that the guest and QEMU printed. Every wait has a deadline.
NOT HERE  How the devices are served (they are processes, started by their command line), words for people (cli/demo).
"""
