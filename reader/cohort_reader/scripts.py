"""The Lua scripts of the follower.

All keys of a script belong to one change stream, and so to one slot of a cluster. All of them may
run when the store's memory is full: a follower that can't go on would lose changes.
"""

from __future__ import annotations

import hashlib
from typing import Any

from redis import exceptions

from cohort_reader.steps import Steps

# The consumer that owns entries waiting to be handled again. A follower owns only entries that it
# is handling, or that were delivered in a reply that it never received.
RELEASED = "(released)"


class Script:
    """A script; runs by its digest, and is loaded where the store doesn't know it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: list[str], *args: Any) -> Steps[Any]:
        for _ in range(2):
            try:
                return (yield client.evalsha(self.digest, len(keys), *keys, *args))
            except exceptions.NoScriptError:
                yield client.script_load(self.source)
        return (yield client.evalsha(self.digest, len(keys), *keys, *args))


# Detects and records that entries left the stream before they were handled.
#
# Trimming removes the oldest entries first. So if an older entry is still held, a missing one was
# erased with its users, and that is no loss. If nothing older is held, the two can't be told apart.
_LOSS = """#!lua flags=allow-oom
local call = redis.call
local stream, lost, group = KEYS[1], KEYS[2], ARGV[1]

local function is_newer(a, b)
  local ms_a, n_a = string.match(a, '(%d+)-(%d+)')
  local ms_b, n_b = string.match(b, '(%d+)-(%d+)')
  if ms_a ~= ms_b then return tonumber(ms_a) > tonumber(ms_b) end
  return tonumber(n_a) > tonumber(n_b)
end

-- The fields of a reply that alternates names and values.
local function fields(list)
  local found = {}
  for i = 1, #list, 2 do found[list[i]] = list[i + 1] end
  return found
end

local lost_now = 0
local function note_missing(id)
  if #call('XRANGE', stream, '-', '(' .. id, 'COUNT', 1) == 0 then
    call('SET', lost, id)
    lost_now = 1
  end
end

-- An entry was delivered, is not acknowledged, and has left the stream.
local function drop(id)
  note_missing(id)
  call('XACK', stream, group, id)
end

-- Entries that left the stream before they were delivered. Each entry names its predecessor
-- ('previous'), so a gap shows before the first undelivered one. Closes the gap.
local function note_gap()
  local read
  for _, row in ipairs(call('XINFO', 'GROUPS', stream)) do
    local about = fields(row)
    if about['name'] == group then read = about['last-delivered-id'] end
  end
  if not read then return end
  local entry = call('XRANGE', stream, '(' .. read, '+', 'COUNT', 1)[1]
  local last
  if entry then
    last = fields(entry[2])['previous'] or '0-0'
  else
    last = fields(call('XINFO', 'STREAM', stream))['last-generated-id']
  end
  if is_newer(last, read) then
    note_missing(entry and entry[1] or last)
    if lost_now == 1 then call('XGROUP', 'SETID', stream, group, last) end
  end
end
"""

# Whether a consumer has a lease or may take it. A lease that has more than twice its duration left
# was taken while the store's clock was ahead, and is ignored.
_HAS_LEASE = """
local function has_lease(lease, consumer, ms)
  local owner = redis.call('GET', lease)
  return not owner or owner == consumer or redis.call('PTTL', lease) > 2 * ms
end
"""

# Take what to handle next, in one step with the check for loss.
#
# KEYS     stream, lost, lease
# ARGV     group, consumer, ms after which entries may be claimed, maximum number of new entries,
#          'ordered' or 'unordered'
# Returns  {state, 1 if a loss was found now, entries, deliveries}. States: 'busy', another follower
#          has the lease; 'wait', an older entry is to be handled first, but not yet; 'more', call
#          again; 'pending', one entry that was delivered before; 'new', entries or none.
#
# Pending entries come first, and one at a time: if several were taken, one that kills the process
# would use up the deliveries of the others. Entries of this consumer are not in hand when this is
# called: their reply was lost, or an earlier process of that name died. They are due now.
#
# While the store's clock is ahead, leases and deliveries get times that are in the future once it
# is corrected. Such a lease is ignored, and such an entry counts as idle: otherwise both would
# block followers until those times.
TAKE = Script(
    _LOSS
    + _HAS_LEASE
    + """
local lease = KEYS[3]
local consumer, claim_after, count, ordered =
  ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5] == 'ordered'
local DROPPED_AT_ONCE = 100

-- Whether the first pending entry was delivered in the future. XPENDING shows that as an idle time
-- of 0, which an entry has for less than a ms otherwise.
local function delivered_ahead(id)
  local clock = call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  for _, row in ipairs(fields(call('XINFO', 'STREAM', stream, 'FULL', 'COUNT', 1))['groups']) do
    local about = fields(row)
    local first = about['name'] == group and about['pending'][1]
    if first and first[1] == id then return first[3] > now + claim_after end
  end
  return false
end

local function first_pending()
  if ordered then return call('XPENDING', stream, group, '-', '+', 1)[1] end
  local own_or_due = call('XPENDING', stream, group, '-', '+', 1, consumer)[1]
    or call('XPENDING', stream, group, 'IDLE', claim_after, '-', '+', 1)[1]
  if own_or_due then return own_or_due end
  local first = call('XPENDING', stream, group, '-', '+', 1)[1]
  return first and first[3] == 0 and delivered_ahead(first[1]) and first
end

local pending = first_pending() -- fails here if there is no such group
if ordered then
  if not has_lease(lease, consumer, claim_after) then return {'busy', 0} end
  call('SET', lease, consumer, 'PX', claim_after)
end

for _ = 1, DROPPED_AT_ONCE do
  if not pending then
    note_gap()
    local reply = call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count,
      'STREAMS', stream, '>')
    return {'new', lost_now, reply and reply[1][2] or {}, 1}
  end
  local id, owner, idle, deliveries = unpack(pending)
  local is_due = not ordered or owner == consumer or idle >= claim_after
    or idle == 0 and delivered_ahead(id)
  if not is_due then return {'wait', lost_now} end
  local entry = call('XRANGE', stream, id, id)[1]
  if entry then
    call('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', deliveries + 1, 'JUSTID')
    return {'pending', lost_now, {entry}, deliveries + 1}
  end
  drop(id)
  pending = first_pending()
end
return {'more', lost_now}
"""
)

# Let any follower take entries after some time.
#
# KEYS     stream, lost
# ARGV     group, consumer, idle time in ms to give them, deliveries to give them or '', ids
# Returns  {1 if a loss was found now, ids that have left the stream and were kept pending}
#
# If deliveries is '', entries that have left the stream stay pending, for the caller to give up.
RELEASE = Script(
    _LOSS
    + f"local RELEASED = '{RELEASED}'"
    + """
local consumer, idle, deliveries = ARGV[2], ARGV[3], ARGV[4]
local kept = {}
for i = 5, #ARGV do
  local id = ARGV[i]
  local pending = call('XPENDING', stream, group, id, id, 1)[1]
  if pending and pending[2] == consumer then
    if #call('XRANGE', stream, id, id) > 0 then
      local count = deliveries == '' and pending[4] or deliveries
      call('XCLAIM', stream, group, RELEASED, 0, id, 'IDLE', idle, 'RETRYCOUNT', count, 'JUSTID')
    elseif deliveries == '' then
      kept[#kept + 1] = id
    else
      drop(id)
    end
  end
end
return {lost_now, kept}
"""
)

# Detect loss without taking anything.
#
# KEYS     stream, lost
# ARGV     group, ms after which entries may be claimed
# Returns  {1 if a loss was found now, 1 if one was found and not acknowledged}
DETECT_LOSS = Script(
    _LOSS
    + """
local AT_ONCE = 100
for _, pending in ipairs(call('XPENDING', stream, group, 'IDLE', ARGV[2], '-', '+', AT_ONCE)) do
  if #call('XRANGE', stream, pending[1], pending[1]) > 0 then break end
  drop(pending[1])
end
note_gap()
return {lost_now, call('EXISTS', lost)}
"""
)

# Keep entries in hand from being claimed by others. Those that have left the stream stay pending,
# as XCLAIM would forget them.
#
# KEYS     stream
# ARGV     group, consumer, ids
RENEW = Script("""#!lua flags=allow-oom
for i = 3, #ARGV do
  if #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) > 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  end
end
return 1
""")

# Move an entry to the failed ones.
#
# KEYS     stream, failed
# ARGV     group, entry id, how many failed entries to keep, field, value, …
GIVE_UP = Script("""#!lua flags=allow-oom
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return 1
""")

# Acquire or renew the lease on a stream. Safe to repeat when a reply was lost.
ACQUIRE_LEASE = Script(
    "#!lua flags=allow-oom\n"
    + _HAS_LEASE
    + """
if not has_lease(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)

RELEASE_LEASE = Script("""#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""")

# Remove consumers without pending entries: one by name, and those that did nothing for some time.
#
# KEYS     stream
# ARGV     group, consumer or '', idle time in ms
REMOVE_CONSUMERS = Script("""#!lua flags=allow-oom
local call = redis.call
for _, row in ipairs(call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local about = {}
  for i = 1, #row, 2 do about[row[i]] = row[i + 1] end
  if about['pending'] == 0 and (about['name'] == ARGV[2] or about['idle'] >= tonumber(ARGV[3])) then
    call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about['name'])
  end
end
return 1
""")
