"""A disk as its rings share it."""

from vhostd.backends.block.engine cimport blk_map_t
from vhostd.backends.block.request cimport disk_t

cdef class Disk:
    cdef disk_t c
    cdef blk_map_t map
