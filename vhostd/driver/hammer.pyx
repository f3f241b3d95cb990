"""A second vCPU that rewrites guest memory while a device reads it: a thread without the GIL, as fast as it goes."""

import threading

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.unistd cimport write

from vhostd.atomics cimport cpu_relax, load_acquire_u16, load_relaxed_u32, store_relaxed_u32, store_release_u16

from vhostd.errors import LocalProtocolError


@cython.final
cdef class Hammer:
    """A thread that does one thing to memory again and again while the `with` block lasts; `turns` says how often."""

    cdef uint32_t stop
    cdef uint64_t done
    cdef object thread
    cdef object views
    cdef uint8_t *values
    cdef uint8_t *target
    cdef uint32_t value_len
    cdef uint32_t value_count
    cdef uint16_t *avail_idx
    cdef uint16_t *used_idx
    cdef uint16_t ahead
    cdef int fd

    def __cinit__(self):
        self.values = NULL
        self.fd = -1

    def __dealloc__(self):
        free(self.values)

    @staticmethod
    def flip(view, values):
        """Write each of `values`, bytes of one length, over the start of `view`, in turn."""
        cdef Hammer made = Hammer()
        cdef uint8_t[::1] target = view
        cdef const uint8_t[::1] value
        lengths = {len(value_) for value_ in values}
        if len(lengths) != 1 or not 0 < next(iter(lengths)) <= len(view):
            raise LocalProtocolError("hammer: values of one length, and room for it")
        made.value_len = <uint32_t>next(iter(lengths))
        made.value_count = <uint32_t>len(values)
        made.values = <uint8_t *>malloc(<size_t>made.value_len * made.value_count)
        if made.values == NULL:
            raise MemoryError
        for i, value_ in enumerate(values):
            value = value_
            memcpy(made.values + <size_t>i * made.value_len, &value[0], made.value_len)
        made.target = &target[0]
        made.views = (view,)
        return made

    @staticmethod
    def refill(avail_idx, used_idx, ahead):
        """Keep avail.idx `ahead` of used.idx: whenever the device looks, there is more. Both are views of two bytes."""
        cdef Hammer made = Hammer()
        cdef uint8_t[::1] a = avail_idx
        cdef uint8_t[::1] u = used_idx
        made.avail_idx = <uint16_t *>&a[0]
        made.used_idx = <uint16_t *>&u[0]
        made.ahead = ahead
        made.views = (avail_idx, used_idx)
        return made

    @staticmethod
    def kick(fd):
        """Write 1 to an eventfd."""
        cdef Hammer made = Hammer()
        made.fd = fd
        return made

    @property
    def turns(self):
        """How often it was done so far."""
        return self.done

    def __enter__(self):
        self.thread = threading.Thread(target=self._run, name="hammer")
        self.thread.start()
        return self

    def __exit__(self, kind, value, tb):
        store_relaxed_u32(&self.stop, 1)
        self.thread.join()

    def _run(self):
        with nogil:
            self.loop()

    cdef void loop(self) noexcept nogil:
        cdef uint32_t i = 0
        cdef uint64_t one = 1
        while not load_relaxed_u32(&self.stop):
            if self.fd >= 0:
                write(self.fd, &one, sizeof(one))
            elif self.avail_idx != NULL:
                store_release_u16(self.avail_idx, <uint16_t>(load_acquire_u16(self.used_idx) + self.ahead))
                cpu_relax()
            else:
                memcpy(self.target, self.values + <size_t>i * self.value_len, self.value_len)
                i += 1
                if i == self.value_count:
                    i = 0
            self.done += 1
