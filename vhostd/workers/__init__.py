"""Threads that wait, and serve what they waited for.

LIFE      A worker starts with its daemon and ends with it. Handlers come and go through its mailbox.
OWNERS    A worker thread owns its epoll set, its io_uring and every handler it was given, and all that these point to,
          from the mail that brings a handler to the reply of the mail that takes it away.
DOORS     One: the mailbox, a queue of (function, target, argument) that the worker calls between two batches, and a
          queue of answers back. A function that cannot finish yet (a drain) is called again after each batch.
FAIRNESS  A pass gives every ready handler one bounded turn; then completions; then mail; then the next pass. Where
          there is always more to do, every eighth pass also hears, and looks for, what has come to the others.
WAITING   Before it sleeps a worker looks again for up to `poll_ns` (adaptive, 0: never), then has each handler ask for
          its notifications and look once more. It sleeps without a time-out, except once for 2 ms after that, for
          drivers that miss a fence. An idle worker does not wake.
FAILURE   A worker cannot fail: a handler answers codes, and what goes wrong is reported by mail.
NOT HERE  What a kick means. The room knows no virtio.
"""
