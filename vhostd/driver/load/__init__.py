"""Load for any back-end, and what is learnt from it.

LIFE      A Job is words; `run_job` runs it on the queues of a started session, a thread each, and returns a Result.
          Around it: `measure` finds out what the back-end paid for it, `compare` starts back-ends itself and takes
          turns, `report` and `plot` show what came of it.
OWNERS    One thread drives a queue, without the GIL (`hotloop`, `netloop`); it owns the queue's histogram and ledger
          until it returns. A Gauge alone is read meanwhile.
TRUST     Whatever the back-end does, a load ends: its time, and ten seconds for what is in flight. A request that
          failed, a wrong used length or a wrong byte is an error, never a number.
FAILURE   DeviceError for the back-end's, BenchError for what cannot be measured here; it says what to do.
NOT HERE  Flags and what is printed where (cli/bench). Nothing here decides what a back-end ought to do: it measures.
"""

from vhostd.driver.load.job import Job
from vhostd.driver.load.result import Result
from vhostd.driver.load.runner import disk_len, run_job

__all__ = ["Job", "Result", "disk_len", "run_job"]
