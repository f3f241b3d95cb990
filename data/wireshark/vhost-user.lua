-- vhost-user for Wireshark: decodes what `vhostd proxy --pcap` has captured.
--
-- Load it with `wireshark -X lua_script:vhost-user.lua FILE`, or put it in the personal Lua plugins' folder (Help, About,
-- Folders). The format of a packet is in docs/proxy.md. The tables are made from vhostd's own by
-- `python -m tests.support.lua_tables`; the rest follows the vhost-user document's "Payload".

-- tables: begin
local LINKTYPE = wtap.USER10
local PSEUDO_LEN = 16
local flag_names = {
  protocol_features = { { 0, "MQ" }, { 1, "LOG_SHMFD" }, { 2, "RARP" }, { 3, "REPLY_ACK" }, { 4, "NET_MTU" }, { 5, "BACKEND_REQ" }, { 6, "CROSS_ENDIAN" }, { 7, "CRYPTO_SESSION" }, { 8, "PAGEFAULT" }, { 9, "CONFIG" }, { 10, "BACKEND_SEND_FD" }, { 11, "HOST_NOTIFIER" }, { 12, "INFLIGHT_SHMFD" }, { 13, "RESET_DEVICE" }, { 14, "INBAND_NOTIFICATIONS" }, { 15, "CONFIGURE_MEM_SLOTS" }, { 16, "STATUS" }, { 17, "XEN_MMAP" }, { 18, "SHARED_OBJECT" }, { 19, "DEVICE_STATE" }, { 20, "GET_VRING_BASE_INFLIGHT" }, { 21, "GPA_ADDRESSES" }, { 22, "SHMEM_MAP" } },
  features_0 = { { 24, "NOTIFY_ON_EMPTY" }, { 26, "LOG_ALL" }, { 27, "ANY_LAYOUT" }, { 28, "INDIRECT_DESC" }, { 29, "EVENT_IDX" }, { 30, "PROTOCOL_FEATURES" }, { 32, "VERSION_1" }, { 33, "ACCESS_PLATFORM" }, { 34, "RING_PACKED" }, { 35, "IN_ORDER" }, { 36, "ORDER_PLATFORM" }, { 37, "SR_IOV" }, { 38, "NOTIFICATION_DATA" }, { 39, "NOTIF_CONFIG_DATA" }, { 40, "RING_RESET" }, { 41, "ADMIN_VQ" } },
  features_1 = { { 0, "CSUM" }, { 1, "GUEST_CSUM" }, { 2, "CTRL_GUEST_OFFLOADS" }, { 3, "MTU" }, { 5, "MAC" }, { 6, "GSO" }, { 7, "GUEST_TSO4" }, { 8, "GUEST_TSO6" }, { 9, "GUEST_ECN" }, { 10, "GUEST_UFO" }, { 11, "HOST_TSO4" }, { 12, "HOST_TSO6" }, { 13, "HOST_ECN" }, { 14, "HOST_UFO" }, { 15, "MRG_RXBUF" }, { 16, "STATUS" }, { 17, "CTRL_VQ" }, { 18, "CTRL_RX" }, { 19, "CTRL_VLAN" }, { 21, "GUEST_ANNOUNCE" }, { 22, "MQ" }, { 23, "CTRL_MAC_ADDR" }, { 24, "NOTIFY_ON_EMPTY" }, { 26, "LOG_ALL" }, { 27, "ANY_LAYOUT" }, { 28, "INDIRECT_DESC" }, { 29, "EVENT_IDX" }, { 30, "PROTOCOL_FEATURES" }, { 32, "VERSION_1" }, { 33, "ACCESS_PLATFORM" }, { 34, "RING_PACKED" }, { 35, "IN_ORDER" }, { 36, "ORDER_PLATFORM" }, { 37, "SR_IOV" }, { 38, "NOTIFICATION_DATA" }, { 39, "NOTIF_CONFIG_DATA" }, { 40, "RING_RESET" }, { 41, "ADMIN_VQ" }, { 54, "GUEST_USO4" }, { 55, "GUEST_USO6" }, { 56, "HOST_USO" }, { 57, "HASH_REPORT" }, { 59, "GUEST_HDRLEN" }, { 60, "RSS" }, { 61, "RSC_EXT" }, { 62, "STANDBY" }, { 63, "SPEED_DUPLEX" } },
  features_2 = { { 0, "BARRIER" }, { 1, "SIZE_MAX" }, { 2, "SEG_MAX" }, { 4, "GEOMETRY" }, { 5, "RO" }, { 6, "BLK_SIZE" }, { 7, "SCSI" }, { 9, "FLUSH" }, { 10, "TOPOLOGY" }, { 11, "CONFIG_WCE" }, { 12, "MQ" }, { 13, "DISCARD" }, { 14, "WRITE_ZEROES" }, { 15, "LIFETIME" }, { 16, "SECURE_ERASE" }, { 17, "ZONED" }, { 24, "NOTIFY_ON_EMPTY" }, { 26, "LOG_ALL" }, { 27, "ANY_LAYOUT" }, { 28, "INDIRECT_DESC" }, { 29, "EVENT_IDX" }, { 30, "PROTOCOL_FEATURES" }, { 32, "VERSION_1" }, { 33, "ACCESS_PLATFORM" }, { 34, "RING_PACKED" }, { 35, "IN_ORDER" }, { 36, "ORDER_PLATFORM" }, { 37, "SR_IOV" }, { 38, "NOTIFICATION_DATA" }, { 39, "NOTIF_CONFIG_DATA" }, { 40, "RING_RESET" }, { 41, "ADMIN_VQ" } },
  header = { { 2, "REPLY" }, { 3, "NEED_REPLY" } },
  status = { { 0, "ACKNOWLEDGE" }, { 1, "DRIVER" }, { 2, "DRIVER_OK" }, { 3, "FEATURES_OK" }, { 6, "DEVICE_NEEDS_RESET" }, { 7, "FAILED" } },
  vring_addr = { { 0, "LOG" } },
  vring_area = { { 8, "NO_FD" } },
  iotlb_access = { { 0, "READ" }, { 1, "WRITE" } },
  shmem = { { 0, "MAP_RW" } },
  link = { { 0, "LINK_UP" }, { 1, "ANNOUNCE" } },
}
local value_names = {
  requests = { [1] = "GET_FEATURES", [2] = "SET_FEATURES", [3] = "SET_OWNER", [4] = "RESET_OWNER", [5] = "SET_MEM_TABLE", [6] = "SET_LOG_BASE", [7] = "SET_LOG_FD", [8] = "SET_VRING_NUM", [9] = "SET_VRING_ADDR", [10] = "SET_VRING_BASE", [11] = "GET_VRING_BASE", [12] = "SET_VRING_KICK", [13] = "SET_VRING_CALL", [14] = "SET_VRING_ERR", [15] = "GET_PROTOCOL_FEATURES", [16] = "SET_PROTOCOL_FEATURES", [17] = "GET_QUEUE_NUM", [18] = "SET_VRING_ENABLE", [19] = "SEND_RARP", [20] = "NET_SET_MTU", [21] = "SET_BACKEND_REQ_FD", [22] = "IOTLB_MSG", [23] = "SET_VRING_ENDIAN", [24] = "GET_CONFIG", [25] = "SET_CONFIG", [26] = "CREATE_CRYPTO_SESSION", [27] = "CLOSE_CRYPTO_SESSION", [28] = "POSTCOPY_ADVISE", [29] = "POSTCOPY_LISTEN", [30] = "POSTCOPY_END", [31] = "GET_INFLIGHT_FD", [32] = "SET_INFLIGHT_FD", [33] = "GPU_SET_SOCKET", [34] = "RESET_DEVICE", [35] = "VRING_KICK", [36] = "GET_MAX_MEM_SLOTS", [37] = "ADD_MEM_REG", [38] = "REM_MEM_REG", [39] = "SET_STATUS", [40] = "GET_STATUS", [41] = "GET_SHARED_OBJECT", [42] = "SET_DEVICE_STATE_FD", [43] = "CHECK_DEVICE_STATE", [44] = "GET_SHMEM_CONFIG" },
  backend_requests = { [1] = "IOTLB_MSG", [2] = "CONFIG_CHANGE_MSG", [3] = "VRING_HOST_NOTIFIER_MSG", [4] = "VRING_CALL", [5] = "VRING_ERR", [6] = "SHARED_OBJECT_ADD", [7] = "SHARED_OBJECT_REMOVE", [8] = "SHARED_OBJECT_LOOKUP", [9] = "SHMEM_MAP", [10] = "SHMEM_UNMAP" },
  iotlb_types = { [1] = "MISS", [2] = "UPDATE", [3] = "INVALIDATE", [4] = "ACCESS_FAIL" },
  config_flags = { [0] = "WRITABLE", [1] = "MIGRATION" },
  directions = { [0] = "SAVE", [1] = "LOAD" },
  phases = { [0] = "STOPPED" },
  devices = { [1] = "NET", [2] = "BLOCK" },
  faults = { [0] = "NONE", [1] = "DROP", [2] = "DELAY", [3] = "DISCONNECT" },
}
-- what a request carries, and what its reply
local payloads = {
  [1] = { "Empty", "U64" },
  [2] = { "U64", "Ack" },
  [3] = { "Empty", "Ack" },
  [4] = { "Empty", "Ack" },
  [5] = { "MemTable", "Ack" },
  [6] = { "Log", "Ack" },
  [7] = { "Empty", "Ack" },
  [8] = { "VringState", "Ack" },
  [9] = { "VringAddr", "Ack" },
  [10] = { "VringState", "Ack" },
  [11] = { "VringState", "VringState" },
  [12] = { "VringFd", "Ack" },
  [13] = { "VringFd", "Ack" },
  [14] = { "VringFd", "Ack" },
  [15] = { "Empty", "U64" },
  [16] = { "U64", "Ack" },
  [17] = { "Empty", "U64" },
  [18] = { "VringState", "Ack" },
  [19] = { "U64", "Ack" },
  [20] = { "U64", "Ack" },
  [21] = { "Empty", "Ack" },
  [22] = { "Iotlb", "Ack" },
  [23] = { "VringState", "Ack" },
  [24] = { "Config", "Config" },
  [25] = { "Config", "Ack" },
  [26] = { "Opaque", "Opaque" },
  [27] = { "U64", "Ack" },
  [28] = { "Empty", "Empty" },
  [29] = { "Empty", "Ack" },
  [30] = { "Empty", "Ack" },
  [31] = { "Inflight", "Inflight" },
  [32] = { "Inflight", "Ack" },
  [33] = { "Empty", "Ack" },
  [34] = { "Empty", "Ack" },
  [35] = { "VringState", "Ack" },
  [36] = { "Empty", "U64" },
  [37] = { "SingleRegion", "Ack" },
  [38] = { "SingleRegion", "Ack" },
  [39] = { "U64", "Ack" },
  [40] = { "Empty", "U64" },
  [41] = { "SharedObject", "Opaque" },
  [42] = { "DeviceStateTransfer", "U64" },
  [43] = { "Empty", "Ack" },
  [44] = { "Empty", "ShmemConfig" },
}
local backend_payloads = {
  [1] = { "Iotlb", "Ack" },
  [2] = { "Empty", "Ack" },
  [3] = { "VringArea", "Ack" },
  [4] = { "VringState", "Ack" },
  [5] = { "VringState", "Ack" },
  [6] = { "SharedObject", "Ack" },
  [7] = { "SharedObject", "Ack" },
  [8] = { "SharedObject", "Ack" },
  [9] = { "ShmemMap", "Ack" },
  [10] = { "ShmemMap", "Ack" },
}
local lengths = { -- bytes of a payload, at least and at most
  Config = { 12, 268 },
  DeviceStateTransfer = { 8, 8 },
  Empty = { 0, 0 },
  Inflight = { 20, 24 },
  Iotlb = { 26, 32 },
  Log = { 16, 16 },
  MemRegion = { 32, 32 },
  MemTable = { 8, 264 },
  Opaque = { 0, 2056 },
  SharedObject = { 16, 16 },
  ShmemConfig = { 2056, 2056 },
  ShmemMap = { 40, 40 },
  SingleRegion = { 40, 40 },
  U64 = { 8, 8 },
  VringAddr = { 40, 40 },
  VringArea = { 24, 24 },
  VringFd = { 8, 8 },
  VringState = { 8, 8 },
}
local config_fields = { -- offset, length, name
  [2] = {
    { 0, 8, "capacity" },
    { 8, 4, "size_max" },
    { 12, 4, "seg_max" },
    { 16, 4, "geometry" },
    { 20, 4, "blk_size" },
    { 24, 8, "topology" },
    { 32, 1, "writeback" },
    { 34, 2, "num_queues" },
    { 36, 4, "max_discard_sectors" },
    { 40, 4, "max_discard_seg" },
    { 44, 4, "discard_sector_alignment" },
    { 48, 4, "max_write_zeroes_sectors" },
    { 52, 4, "max_write_zeroes_seg" },
    { 56, 1, "write_zeroes_may_unmap" },
  },
  [1] = {
    { 0, 6, "mac" },
    { 6, 2, "status" },
    { 8, 2, "max_virtqueue_pairs" },
    { 10, 2, "mtu" },
  },
}
-- tables: end

local proto = Proto("vhostuser", "vhost-user")
local f = {}

local function field(kind, name, title, ...)
  f[name] = ProtoField[kind]("vhostuser." .. name, title, ...)
end

field("uint8", "format", "Format of the packet")
field("string", "sender", "Sender")
field("string", "channel", "Channel")
field("string", "device", "Device")
field("string", "fault", "Fault")
field("uint16", "fds", "Descriptors")
field("uint32", "connection", "Connection")
field("uint32", "number", "Number")
field("string", "request", "Request")
field("uint32", "code", "Request code")
field("string", "kind", "Kind")
field("uint32", "version", "Version")
field("string", "flags", "Flags")
field("uint32", "size", "Payload length")
field("bytes", "data", "Bytes")
field("string", "problem", "Problem")
field("string", "result", "Result")
field("string", "unknown", "Unknown bits")
field("string", "features", "Features")
field("string", "protocol_features", "Protocol features")
field("string", "status", "Device status")
field("uint64", "value", "Value", base.HEX)
field("uint64", "queues", "Queues")
field("uint64", "slots", "Memory slots")
field("uint64", "mtu", "MTU")
field("ether", "mac", "MAC address")
field("uint32", "vring", "Vring")
field("uint32", "num", "Num")
field("uint32", "base", "Base")
field("uint32", "avail_idx", "Available index")
field("uint32", "avail_wrap", "Available wrap counter")
field("uint32", "used_idx", "Used index")
field("uint32", "used_wrap", "Used wrap counter")
field("string", "enable", "Enable")
field("string", "endian", "Endianness")
field("string", "fd", "Descriptor")
field("uint64", "desc", "Descriptor table", base.HEX)
field("uint64", "used", "Used ring", base.HEX)
field("uint64", "avail", "Available ring", base.HEX)
field("uint64", "log", "Log address", base.HEX)
field("uint64", "gpa", "Guest address", base.HEX)
field("uint64", "uva", "User address", base.HEX)
field("uint64", "iova", "I/O virtual address", base.HEX)
field("uint64", "length", "Length")
field("uint64", "offset", "Offset", base.HEX)
field("string", "type", "Type")
field("string", "permissions", "Permissions")
field("uint32", "config_offset", "Configuration offset")
field("uint32", "config_size", "Configuration size")
field("string", "config_flags", "Configuration flags")
field("string", "payload_flags", "Flags of the payload")
field("string", "uuid", "UUID")
field("string", "direction", "Direction")
field("string", "phase", "Phase")
field("uint32", "count", "Count")
field("uint32", "shmid", "Shared memory region")
field("uint64", "fd_offset", "Offset in the file", base.HEX)
field("uint64", "shm_offset", "Offset in the region", base.HEX)

for _, fields in pairs(config_fields) do
  for _, row in ipairs(fields) do
    local length, name = row[2], "config." .. row[3]
    local kind = ({ [1] = "uint8", [2] = "uint16", [4] = "uint32" })[length] or "bytes"
    if row[3] == "mac" then kind = "ether" elseif row[3] == "capacity" then kind = "uint64" end
    if row[3] == "geometry" then kind = "bytes" end
    if f[name] == nil then field(kind, name, "Configuration: " .. row[3]) end
  end
end

proto.fields = {}
for _, one in pairs(f) do
  table.insert(proto.fields, one)
end

-- The names of the bits of a number given as its lower and upper 32 bits: NAME|NAME|0x40, in the order of the bits.
local function flags(low, high, names)
  local words = {}
  for _, one in ipairs(names) do
    local bit, name = one[1], one[2]
    local word = bit < 32 and low or high
    local weight = 2 ^ (bit % 32)
    if math.floor(word / weight) % 2 == 1 then
      table.insert(words, name)
      if bit < 32 then low = low - weight else high = high - weight end
    end
  end
  if high > 0 then
    table.insert(words, string.format("0x%x%08x", high, low))
  elseif low > 0 then
    table.insert(words, string.format("0x%x", low))
  end
  return #words > 0 and table.concat(words, "|") or "0"
end

local function named(value, names)
  return names[value] or string.format("0x%x", value)
end

local units = { [0] = "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" }

local function size_words(range)
  local length, unit = range:le_uint64(), 0
  local zero, kibi = UInt64(0), UInt64(1024)
  while length ~= zero and length % kibi == zero and unit < 6 do
    length, unit = length / kibi, unit + 1
  end
  return tostring(length) .. units[unit]
end

local function add_flags(tree, name, range, names)
  local high = range:len() == 8 and range(4, 4):le_uint() or 0
  local low = range:len() == 8 and range(0, 4):le_uint() or range:le_uint()
  tree:add(f[name], range, flags(low, high, names))
end

local function add_length(tree, name, range)
  tree:add_le(f[name], range):append_text(" (" .. size_words(range) .. ")")
end

local function add_result(tree, range)
  local low, high = range(0, 4):le_uint(), range(4, 4):le_uint()
  local words = "ok"
  if high > 0 then
    words = string.format("failed (0x%x%08x)", high, low)
  elseif low > 0 then
    words = string.format("failed (0x%x)", low)
  end
  tree:add(f.result, range, words)
end

local function add_region(tree, range)
  tree:add_le(f.gpa, range(0, 8))
  add_length(tree, "length", range(8, 8))
  tree:add_le(f.uva, range(16, 8))
  tree:add_le(f.offset, range(24, 8))
end

local function add_base(tree, range, packed)
  if not packed then
    tree:add_le(f.base, range)
    return
  end
  local num = range:le_uint()
  tree:add(f.avail_idx, range, num % 0x8000)
  tree:add(f.avail_wrap, range, math.floor(num / 0x8000) % 2)
  tree:add(f.used_idx, range, math.floor(num / 0x10000) % 0x8000)
  tree:add(f.used_wrap, range, math.floor(num / 0x80000000))
end

-- What a u64 means, by request.
local u64 = {
  GET_FEATURES = function(range, tree, at) add_flags(tree, "features", range, flag_names["features_" .. at.device]) end,
  GET_PROTOCOL_FEATURES = function(range, tree)
    add_flags(tree, "protocol_features", range, flag_names.protocol_features)
  end,
  GET_STATUS = function(range, tree) add_flags(tree, "status", range, flag_names.status) end,
  GET_QUEUE_NUM = function(range, tree) tree:add_le(f.queues, range) end,
  GET_MAX_MEM_SLOTS = function(range, tree) tree:add_le(f.slots, range) end,
  NET_SET_MTU = function(range, tree) tree:add_le(f.mtu, range) end,
  SEND_RARP = function(range, tree) tree:add(f.mac, range(0, 6)) end,
  SET_DEVICE_STATE_FD = function(range, tree)
    local low = range(0, 4):le_uint()
    local failed = low % 256
    tree:add(f.result, range, failed == 0 and "ok" or string.format("failed (0x%x)", failed))
    local none = math.floor(low / 256) % 2 == 1
    tree:add(f.fd, range, none and "none: use yours" or "the one with this reply")
    local rest = flags(low - low % 512, range(4, 4):le_uint(), {})
    if rest ~= "0" then tree:add(f.unknown, range, rest) end
  end,
}
u64.SET_FEATURES = u64.GET_FEATURES
u64.SET_PROTOCOL_FEATURES = u64.GET_PROTOCOL_FEATURES
u64.SET_STATUS = u64.GET_STATUS

-- A payload of each kind: its bytes, where it is shown, and what is known of the message.
local show = {
  Empty = function() end,
  Ack = function(range, tree) add_result(tree, range) end,
  U64 = function(range, tree, at)
    local how = u64[at.name]
    if how then how(range, tree, at) else tree:add_le(f.value, range) end
  end,
  VringState = function(range, tree, at)
    tree:add_le(f.vring, range(0, 4))
    local num, value = range(4, 4), range(4, 4):le_uint()
    if at.name == "SET_VRING_NUM" then
      tree:add_le(f.num, num)
    elseif at.name == "SET_VRING_ENABLE" then
      tree:add(f.enable, num, named(value, { [0] = "off", [1] = "on" }))
    elseif at.name == "SET_VRING_ENDIAN" then
      tree:add(f.endian, num, named(value, { [0] = "little", [1] = "big" }))
    elseif at.name == "SET_VRING_BASE" or (at.name == "GET_VRING_BASE" and at.is_reply) then
      add_base(tree, num, at.packed)
    elseif value > 0 then
      tree:add_le(f.num, num)
    end
  end,
  VringAddr = function(range, tree)
    tree:add_le(f.vring, range(0, 4))
    add_flags(tree, "payload_flags", range(4, 4), flag_names.vring_addr)
    tree:add_le(f.desc, range(8, 8))
    tree:add_le(f.used, range(16, 8))
    tree:add_le(f.avail, range(24, 8))
    tree:add_le(f.log, range(32, 8))
  end,
  VringFd = function(range, tree)
    tree:add(f.vring, range(0, 1), range(0, 1):le_uint())
    tree:add(f.fd, range, range(1, 1):le_uint() % 2 == 1 and "none: to be polled" or "with this message")
  end,
  MemTable = function(range, tree, at)
    local count = range(0, 4):le_uint()
    if range:len() ~= 8 + 32 * count then return "the regions are not as many as announced" end
    for number = 0, count - 1 do
      local region = range(8 + 32 * number, 32)
      add_region(tree:add(at.proto, region, "Region " .. number), region)
    end
  end,
  SingleRegion = function(range, tree) add_region(tree, range(8, 32)) end,
  Log = function(range, tree)
    add_length(tree, "length", range(0, 8))
    tree:add_le(f.offset, range(8, 8))
  end,
  Iotlb = function(range, tree)
    tree:add(f.type, range(25, 1), named(range(25, 1):le_uint(), value_names.iotlb_types))
    tree:add_le(f.iova, range(0, 8))
    add_length(tree, "length", range(8, 8))
    tree:add_le(f.uva, range(16, 8))
    add_flags(tree, "permissions", range(24, 1), flag_names.iotlb_access)
  end,
  Config = function(range, tree, at)
    local offset, size = range(0, 4):le_uint(), range(4, 4):le_uint()
    tree:add_le(f.config_offset, range(0, 4))
    tree:add_le(f.config_size, range(4, 4))
    tree:add(f.config_flags, range(8, 4), named(range(8, 4):le_uint(), value_names.config_flags))
    if range:len() ~= 12 + size then return "the bytes are not as many as announced" end
    if not at.is_reply and at.name ~= "SET_CONFIG" then return end
    for _, row in ipairs(config_fields[at.device] or {}) do
      local start, length = row[1] - offset, row[2]
      if start >= 0 and start + length <= size then
        local one, bytes = f["config." .. row[3]], range(12 + start, length)
        if row[3] == "mac" or row[3] == "geometry" or row[3] == "topology" then
          tree:add(one, bytes)
        else
          tree:add_le(one, bytes)
        end
      end
    end
  end,
  VringArea = function(range, tree)
    tree:add(f.vring, range(0, 1), range(0, 1):le_uint())
    local low, high = range(0, 4):le_uint(), range(4, 4):le_uint()
    tree:add(f.payload_flags, range(0, 8), flags(low - low % 256, high, flag_names.vring_area))
    add_length(tree, "length", range(8, 8))
    tree:add_le(f.offset, range(16, 8))
  end,
  Inflight = function(range, tree)
    add_length(tree, "length", range(0, 8))
    tree:add_le(f.offset, range(8, 8))
    tree:add_le(f.queues, range(16, 2), UInt64(range(16, 2):le_uint()))
    tree:add(f.num, range(18, 2), range(18, 2):le_uint())
  end,
  SharedObject = function(range, tree)
    local hex = tostring(range(0, 16):bytes()):lower()
    local words = { hex:sub(1, 8), hex:sub(9, 12), hex:sub(13, 16), hex:sub(17, 20), hex:sub(21, 32) }
    tree:add(f.uuid, range(0, 16), table.concat(words, "-"))
  end,
  DeviceStateTransfer = function(range, tree)
    tree:add(f.direction, range(0, 4), named(range(0, 4):le_uint(), value_names.directions))
    tree:add(f.phase, range(4, 4), named(range(4, 4):le_uint(), value_names.phases))
  end,
  ShmemConfig = function(range, tree, at)
    tree:add_le(f.count, range(0, 4))
    for number = 0, 255 do
      local size = range(8 + 8 * number, 8)
      if size:le_uint64() ~= UInt64(0) then
        local region = tree:add(at.proto, size, "Region " .. number)
        region:add(f.shmid, size, number)
        add_length(region, "length", size)
      end
    end
  end,
  ShmemMap = function(range, tree)
    tree:add(f.shmid, range(0, 1), range(0, 1):le_uint())
    tree:add_le(f.fd_offset, range(8, 8))
    tree:add_le(f.shm_offset, range(16, 8))
    add_length(tree, "length", range(24, 8))
    add_flags(tree, "payload_flags", range(32, 8), flag_names.shmem)
  end,
  Opaque = function(range, tree) tree:add(f.data, range) end,
}
lengths.Ack = lengths.U64

-- Which payload a message has: its kind, or nothing when the request is not known.
local function kind_of(at, length)
  local row = (at.backend and backend_payloads or payloads)[at.code]
  if not row then return nil end
  local kind = row[at.is_reply and 2 or 1]
  if at.name == "SET_MEM_TABLE" and at.is_reply and length > 8 then return "MemTable" end
  if at.name == "SET_LOG_BASE" and not at.is_reply and length == 8 then return "U64" end
  return kind
end

local function show_payload(range, tree, at)
  local length = range and range:len() or 0
  local kind = kind_of(at, length)
  if not kind then return "there is no such request" end
  if at.name == "GET_CONFIG" and at.is_reply and length == 0 then
    tree:add(f.result, "failed (no payload)")
    return
  end
  local bounds = lengths[kind]
  if length < bounds[1] or length > bounds[2] then return length .. " bytes are no " .. kind end
  if length > 0 then return show[kind](range, tree, at) end
end

-- Whether the front-end has acknowledged packed rings, before each packet that depends on it.
local acked, packed_at = {}, {}

function proto.init()
  acked, packed_at = {}, {}
end

local function is_packed(at, payload, pinfo)
  if not pinfo.visited then
    if at.name == "SET_FEATURES" and not at.is_reply and payload and payload:len() == 8 then
      acked[at.connection] = math.floor(payload(4, 4):le_uint() / 4) % 2 == 1 -- RING_PACKED, bit 34
    end
    packed_at[pinfo.number] = acked[at.connection] or false
  end
  return packed_at[pinfo.number]
end

local function problem(tree, range, words)
  tree:add(f.problem, range, words):add_expert_info(PI_MALFORMED, PI_WARN)
end

function proto.dissector(buffer, pinfo, root)
  pinfo.cols.protocol = "vhost-user"
  if buffer:len() < PSEUDO_LEN then return 0 end
  local tree = root:add(proto, buffer())
  local head = tree:add(proto, buffer(0, PSEUDO_LEN), "Seen by the proxy")
  local from_back, backend = buffer(1, 1):uint() == 1, buffer(2, 1):uint() == 1
  local device = buffer(3, 1):uint()
  head:add(f.format, buffer(0, 1))
  head:add(f.sender, buffer(1, 1), from_back and "back-end" or "front-end")
  head:add(f.channel, buffer(2, 1), backend and "backend" or "main")
  if device > 0 then head:add(f.device, buffer(3, 1), named(device, value_names.devices):lower()) end
  if buffer(5, 1):uint() > 0 then
    head:add(f.fault, buffer(5, 1), named(buffer(5, 1):uint(), value_names.faults):lower())
  end
  head:add_le(f.fds, buffer(6, 2))
  head:add_le(f.connection, buffer(8, 4))
  if buffer(12, 4):le_uint() > 0 then head:add_le(f.number, buffer(12, 4)) end

  local number = buffer(12, 4):le_uint()
  pinfo.cols.src = from_back and "back-end" or "front-end"
  pinfo.cols.dst = from_back and "front-end" or "back-end"
  local rest = buffer:len() - PSEUDO_LEN
  if buffer(4, 1):uint() ~= 0 or rest < 12 then
    if rest > 0 then tree:add(f.data, buffer(PSEUDO_LEN)) end
    problem(tree, buffer(PSEUDO_LEN - 1, 1), "not a message")
    pinfo.cols.info = rest .. " bytes that are no message"
    return buffer:len()
  end

  local code, raw_flags = buffer(PSEUDO_LEN, 4):le_uint(), buffer(PSEUDO_LEN + 4, 4):le_uint()
  local names = backend and value_names.backend_requests or value_names.requests
  local at = {
    proto = proto,
    code = code,
    name = names[code] or "",
    backend = backend,
    is_reply = from_back ~= backend,
    device = (flag_names["features_" .. device] and device) or 0,
    connection = buffer(8, 4):le_uint(),
  }
  local title = (backend and "BACKEND_" or "") .. (names[code] or code)
  if not names[code] then title = (backend and "back-end request " or "request ") .. code end
  tree:add(f.request, buffer(PSEUDO_LEN, 4), title)
  tree:add_le(f.code, buffer(PSEUDO_LEN, 4))
  tree:add(f.kind, buffer(PSEUDO_LEN + 4, 4), at.is_reply and "reply" or "request")
  tree:add(f.version, buffer(PSEUDO_LEN + 4, 4), raw_flags % 4)
  local above = raw_flags - raw_flags % 4
  tree:add(f.flags, buffer(PSEUDO_LEN + 4, 4), flags(above, 0, flag_names.header))
  tree:add_le(f.size, buffer(PSEUDO_LEN + 8, 4))
  pinfo.cols.info = string.format("#%d %s%s", number, title, at.is_reply and " reply" or "")

  local payload = rest > 12 and buffer(PSEUDO_LEN + 12) or nil
  at.packed = is_packed(at, payload, pinfo)
  local wrong = show_payload(payload, tree, at)
  if wrong then
    problem(tree, payload or buffer(PSEUDO_LEN, 12), wrong)
    if payload then tree:add(f.data, payload) end
  end
  return buffer:len()
end

DissectorTable.get("wtap_encap"):add(LINKTYPE, proto)
