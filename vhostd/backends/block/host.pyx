"""System calls on an image that Python's os does not reach."""

from libc.errno cimport errno
from posix.types cimport off_t

cdef extern from "<fcntl.h>" nogil:
    int c_fallocate "fallocate"(int fd, int mode, off_t offset, off_t len)

cdef extern from "<sys/vfs.h>" nogil:
    cdef struct c_statfs "statfs":
        long f_type
    int fstatfs(int fd, c_statfs *buf)


def fallocate(int fd, int mode, off_t offset, off_t length):
    """Return 0, or the errno of fallocate(2), which os.posix_fallocate does not reach."""
    return 0 if c_fallocate(fd, mode, offset, length) == 0 else errno


def file_system(int fd):
    """Return the magic number of the file system that a file is on (statfs(2)); 0 when it cannot be told."""
    cdef c_statfs fs
    return fs.f_type if fstatfs(fd, &fs) == 0 else 0
