"""The Lua scripts of the follower."""

# Acquire or renew the lease on a stream. Safe to repeat when a reply was lost.
ACQUIRE_LEASE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

RELEASE_LEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

# Detect and record that entries left the stream before the group read them.
#
# Each entry names its predecessor ('previous'). If the predecessor of the first unread entry is
# newer than the last entry read, the entries in between are gone. Trimming removes the oldest
# entries first, so if an older entry is still held, they were erased with their users and are no
# loss. It may write even when memory is full, as it runs before every read.
DETECT_LOSS = """#!lua flags=allow-oom
local call = redis.call
local read
for _, group in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do
  local about = {}
  for i = 1, #group, 2 do about[group[i]] = group[i + 1] end
  if about['name'] == ARGV[1] then read = about['last-delivered-id'] end
end

local function after(a, b)
  local ms_a, n_a = string.match(a, '(%d+)-(%d+)')
  local ms_b, n_b = string.match(b, '(%d+)-(%d+)')
  if ms_a ~= ms_b then return tonumber(ms_a) > tonumber(ms_b) end
  return tonumber(n_a) > tonumber(n_b)
end

local entry = read and call('XRANGE', KEYS[1], '(' .. read, '+', 'COUNT', 1)[1]
local previous = '0-0'
for i = 1, entry and #entry[2] or 0, 2 do
  if entry[2][i] == 'previous' then previous = entry[2][i + 1] end
end
if entry and after(previous, read)
    and call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1] == entry[1] then
  call('SET', KEYS[2], previous)
  return 2
end
return call('EXISTS', KEYS[2])
"""
# Results of DETECT_LOSS; 0 is no loss.
LOST_EARLIER, LOST_NOW = 1, 2
