"""io_uring through liburing, thin.

LIFE      A Ring is set up by the control thread, disabled, before anything is given up; its worker enables it, and is
          from then on the only thread that submits or reaps.
OWNERS    One worker. DEFER_TASKRUN: completions run when that worker enters the kernel, never in between.
TRUST     The kernel is trusted. Where it does not give us a ring (sysctl, seccomp, age), `Ring` raises BackendError
          with the reason and what reads instead.
FAILURE   Negative errno in a completion is the caller's to interpret; a full submission queue is submitted at once.
NOT HERE  What is read or written (backends/), when to wait (workers/). Knows no virtio.
"""
