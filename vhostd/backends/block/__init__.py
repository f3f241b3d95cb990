"""virtio-blk over a raw image: a file or a block device.

LIFE      `BlockBackend.open` opens and locks the image, finds out what it can do, and lives until its device closes.
          One handler for each ring, each with its own engine and requests.
OWNERS    disk_t is shared: the control thread writes what an operator or SET_CONFIG may change (capacity,
          write-through), workers read it for each request, with relaxed loads. `flush_failed` is written by workers
          and never taken back. blk_map_t, the mapping of the image, is made before the first handler and given back
          after the last; which of it may be copied is a bitmap of hints that all workers set and clear.
PATH      handler pops a chain, request makes it one checked blk_req_t, the engine carries it out now or later,
          handler writes the status byte and pushes. engine_mapped copies what is cached and leaves the rest to the
          engine below it, engine_uring or engine_sync.
DURABLE   A write is durable before its status when the driver has no way to flush, or the write cache is off; else
          after a FLUSH that was sent when it had completed. A host that once failed to flush fails every later flush.
NOT HERE  Formats: the image is bytes. qcow2 and its like are for qemu-nbd or qemu-storage-daemon.
"""
