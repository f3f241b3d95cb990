from typing import final

from vhostd.backends.ringset import RingSet
from vhostd.workers.loop import Loop

@final
class NetHandler(RingSet):
    def __init__(self, loop: Loop, pair: int, tap_fd: int, multi_queue: bool, user: int) -> None: ...
    def set_mode(self, features: int, frame_len_max: int) -> None: ...
