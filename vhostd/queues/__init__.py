"""Virtqueues and the guest memory they live in.

LIFE      A Queue is built from a vring when its ring starts, and dropped when it has drained. Its geometry is never
          edited: new memory makes a new Queue, which adopts the running state of the old one and which the worker
          swaps in between two batches.
OWNERS    One worker thread runs a queue. The control thread builds it before start and reads it after drain;
          between the two it sees only the counters, which are published with relaxed stores.
TRUST     Everything in guest memory changes while we read it. Each value is read once, checked, then used.
          An address is never used without its length; both become pointers in memory.pyx and nowhere else.
FAILURE   Codes, never exceptions. A bad ring or a chain that cannot be walked sets `broken`, told once, until the
          ring restarts; a buffer outside memory marks its chain `bad`, and who asked for the chain answers it.
          A mapping whose file was cut short turns into zeroes and a fault flag (guard.pyx), not into a dead process.
NOT HERE  Requests (backends/), eventfds and threads (workers/), when a ring starts (protocol/vring).
"""
