"""The one door between the control thread and a worker: two lock-free queues, an eventfd each."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    MAIL_SLOTS = 1024  # in either direction; a power of two
    MAIL_OUTSTANDING = 512  # mails unanswered at a time; the other slots are for reports
    MAIL_LATER = -0x7FFFFFFF  # "not finished: call me again after the next batch"

ctypedef int (*mail_fn)(void *target, void *argument) noexcept nogil

cdef struct mail_t:
    uint64_t id
    mail_fn function
    void *target
    void *argument

cdef struct answer_t:
    uint64_t id  # 0: a report, told unasked
    uint64_t user
    int kind
    int result

cdef struct mailbox_t:
    mail_t mails[MAIL_SLOTS]
    answer_t answers[MAIL_SLOTS]
    # Each counter has one writer; they run free, mod 2**32.
    uint32_t mails_put  # control thread
    uint32_t mails_got  # worker
    uint32_t answers_put  # worker
    uint32_t answers_got  # control thread
    uint32_t lost_reports
    int wake_fd  # the worker waits on it
    int answer_fd  # the control thread waits on it

# Worker's ends, no GIL.
cdef int mailbox_waiting(const mailbox_t *box) noexcept nogil
cdef int mailbox_take(mailbox_t *box, mail_t *mail) noexcept nogil
cdef void mailbox_answer(mailbox_t *box, uint64_t id, uint64_t user, int kind, int result) noexcept nogil

# A mail as a back-end makes it for the control thread to send. `keep` holds what the pointers point into.
cdef class Mail:
    cdef mail_fn function
    cdef void *target
    cdef void *argument
    cdef object keep

cdef Mail make_mail(mail_fn function, void *target, void *argument, object keep)

cdef class Mailbox:
    cdef mailbox_t *c
    cdef uint64_t last_id
    cdef dict unanswered
