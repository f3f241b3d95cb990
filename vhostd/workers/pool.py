"""The workers of a daemon: their threads, and mail to them as something to await."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Literal

import prctl

from vhostd.errors import BackendError
from vhostd.uring.ring import Ring
from vhostd.workers.loop import Loop
from vhostd.workers.mailbox import Mail

log = logging.getLogger(__name__)

INTERRUPT = signal.SIGURG  # ignored where nobody asked for it, so that a stray one does no harm

Report = Callable[[int, int], None]


class Worker:
    """One thread and its loop. `loop` is given to handlers when they are made."""

    def __init__(self, number: int, ring: Ring | None, poll_ns: int) -> None:
        self.number = number
        self.loop = Loop(ring, poll_ns)
        self._thread: threading.Thread | None = None
        self._events: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._reports: dict[int, Report] = {}

    def start(self) -> None:
        """Start the thread, and listen for its answers on the running event loop."""
        self._events = asyncio.get_running_loop()
        self._events.add_reader(self.loop.mailbox.answer_fd, self._answers)
        self._thread = threading.Thread(target=self._run, name=f"vhostd-worker{self.number}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        prctl.set_name(f"vhostd-wrk{self.number}")
        self.loop.run()

    def subscribe(self, user: int, report: Report) -> None:
        """Have `report(kind, result)` called for what a handler made with `user` reports."""
        self._reports[user] = report

    def unsubscribe(self, user: int) -> None:
        """Undo `subscribe`."""
        self._reports.pop(user, None)

    def send(self, mail: Mail) -> "asyncio.Future[int]":
        """Send mail; the future has the answer. Cancelling the future does not take the mail back."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[self.loop.mailbox.send(mail)] = future
        return future

    def interrupt(self) -> None:
        """Have a system call in which the thread waits end with EINTR. Transfers of a local disk do not notice.

        A front-end can make a write to its own eventfd wait: O_NONBLOCK belongs to the open file that we share.
        """
        if self._thread is not None and self._thread.ident is not None and self._thread.is_alive():
            signal.pthread_kill(self._thread.ident, INTERRUPT)

    def _answers(self) -> None:
        # Read the bell before the box: an answer put in between rings it again.
        try:
            os.eventfd_read(self.loop.mailbox.answer_fd)
        except BlockingIOError:
            return
        for number, user, kind, result in self.loop.mailbox.answers():
            if number:
                future = self._waiting.pop(number, None)
                if future is not None and not future.done():
                    future.set_result(result)
            elif (report := self._reports.get(user)) is not None:
                report(kind, result)

    async def close(self) -> None:
        """Stop the thread and give back what it held. Every handler has been stopped, or never will be."""
        if self._thread is None or self._events is None:
            self.loop.close()
            return
        self.send(self.loop.quit_mail())
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 2.0)
        self._events.remove_reader(self.loop.mailbox.answer_fd)
        if self._thread.is_alive():
            log.error("a worker hangs in a system call", extra={"worker": self.number})
            return  # its memory stays: it may come back to it
        self._thread = None
        self.loop.close()


class WorkerPool:
    """The workers of one daemon.

    uring: True: each worker must have an io_uring; None: if the kernel gives one; False: none.
    poll_ns: how long a worker may look for work before it sleeps.
    Raises BackendError when io_uring is wanted and not to be had.
    """

    def __init__(self, workers: int, *, uring: bool | None, poll_ns: int) -> None:
        self.workers: list[Worker] = []
        for number in range(max(workers, 1)):
            ring = None
            if uring is not False:
                try:
                    ring = Ring()
                except BackendError as error:
                    if uring:
                        raise
                    uring = False
                    log.info(str(error))
            self.workers.append(Worker(number, ring, poll_ns))
        self.uring: Literal["io_uring", "sync"] = "io_uring" if self.workers[0].loop.ring is not None else "sync"

    def start(self) -> None:
        """Start all threads. On the event loop, after everything that a thread would inherit is as it should be."""
        # A handler, so that waiting calls end with EINTR; it has nothing to do.
        signal.signal(INTERRUPT, lambda *_: None)
        for worker in self.workers:
            worker.start()

    def worker_for(self, number: int) -> Worker:
        """Return the worker of a device's handler `number`: they are dealt out in turn."""
        return self.workers[number % len(self.workers)]

    async def close(self) -> None:
        """Stop all threads."""
        for worker in self.workers:
            await worker.close()
