"""The one door between the control thread and a worker: two lock-free queues, an eventfd each.

One thread writes each index: the control thread puts mails and takes answers (the GIL keeps other Python threads out),
the worker takes mails and puts answers. An index is stored with release after its slot is filled, and loaded with
acquire before a slot is read.
"""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport write

from vhostd.atomics cimport load_acquire_u32, load_relaxed_u32, store_release_u32

from vhostd.errors import BackendError, LocalProtocolError


cdef void ring_bell(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))  # non-blocking: a full counter has been heard already


cdef int mailbox_waiting(const mailbox_t *box) noexcept nogil:
    return load_relaxed_u32(&box.mails_put) != box.mails_got


cdef int mailbox_take(mailbox_t *box, mail_t *mail) noexcept nogil:
    # acquire: pairs with the release in Mailbox.send, so the slot is filled, and all that its pointers point to
    if load_acquire_u32(&box.mails_put) == box.mails_got:
        return 0
    mail[0] = box.mails[box.mails_got & (MAIL_SLOTS - 1)]
    store_release_u32(&box.mails_got, box.mails_got + 1)
    return 1


cdef void mailbox_answer(mailbox_t *box, uint64_t id, uint64_t user, int kind, int result) noexcept nogil:
    cdef uint32_t used = box.answers_put - load_acquire_u32(&box.answers_got)
    cdef answer_t *slot
    if id == 0 and used >= MAIL_SLOTS - MAIL_OUTSTANDING:
        box.lost_reports += 1  # what a guest can cause at will may be lost; an answer may not
        return
    slot = &box.answers[box.answers_put & (MAIL_SLOTS - 1)]
    slot.id = id
    slot.user = user
    slot.kind = kind
    slot.result = result
    # release: pairs with the acquire in Mailbox.answers, so the slot, and all that the worker did before it, is visible
    store_release_u32(&box.answers_put, box.answers_put + 1)
    ring_bell(box.answer_fd)


cdef class Mail:
    """Something for a worker to do. Made by a back-end's compiled module, sent by the pool."""


cdef Mail make_mail(mail_fn function, void *target, void *argument, object keep):
    cdef Mail mail = Mail.__new__(Mail)
    mail.function = function
    mail.target = target
    mail.argument = argument
    mail.keep = keep
    return mail


cdef class Mailbox:
    """The control thread's end."""

    def __cinit__(self):
        self.c = <mailbox_t *>calloc(1, sizeof(mailbox_t))
        if self.c == NULL:
            raise MemoryError
        self.c.wake_fd = -1
        self.c.answer_fd = -1
        self.unanswered = {}

    def __init__(self):
        self.c.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.c.answer_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __dealloc__(self):
        free(self.c)

    @property
    def wake_fd(self):
        """What the worker waits on."""
        return self.c.wake_fd

    @property
    def answer_fd(self):
        """Readable when there are answers."""
        return self.c.answer_fd

    @property
    def outstanding(self):
        """Mails sent and not yet answered."""
        return len(self.unanswered)

    def send(self, Mail mail not None):
        """Send it and return its id. BackendError when the worker has left too many unanswered."""
        cdef uint32_t put = self.c.mails_put
        if len(self.unanswered) >= MAIL_OUTSTANDING or put - load_acquire_u32(&self.c.mails_got) >= MAIL_SLOTS:
            raise BackendError("a worker does not answer its mail")
        if mail.function == NULL:
            raise LocalProtocolError("an empty mail")
        self.last_id += 1
        cdef mail_t *slot = &self.c.mails[put & (MAIL_SLOTS - 1)]
        slot.id = self.last_id
        slot.function = mail.function
        slot.target = mail.target
        slot.argument = mail.argument
        self.unanswered[self.last_id] = mail  # keeps what its pointers point into until the worker has let go
        store_release_u32(&self.c.mails_put, put + 1)  # release: pairs with the acquire in mailbox_take
        ring_bell(self.c.wake_fd)
        return self.last_id

    def answers(self):
        """Return what has come back: (id, user, kind, result) each; id 0 is a report."""
        cdef answer_t *slot
        got = []
        while load_acquire_u32(&self.c.answers_put) != self.c.answers_got:
            slot = &self.c.answers[self.c.answers_got & (MAIL_SLOTS - 1)]
            got.append((slot.id, slot.user, slot.kind, slot.result))
            if slot.id:
                self.unanswered.pop(slot.id, None)
            store_release_u32(&self.c.answers_got, self.c.answers_got + 1)
        return got

    def close(self):
        """Close the eventfds. The worker has stopped."""
        for fd in (self.c.wake_fd, self.c.answer_fd):
            if fd >= 0:
                os.close(fd)
        self.c.wake_fd = -1
        self.c.answer_fd = -1
        self.unanswered.clear()
