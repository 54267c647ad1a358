#!lua flags=allow-oom
-- Advance and end a cohort's resync, which resync_begin.lua began. app/store/resyncs.py describes the
-- steps.
--
-- Allowed when memory is full: the end of a resync frees what it keeps, and an import may be what
-- has filled the memory.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  action
-- ARGV[2]  cohort id
-- ARGV[3]  id of the resync
--
-- In the home partition; all return 0 unless the record is that of this resync:
-- change   ARGV[4]: states, separated by spaces; ARGV[5]: new state; ARGV[6]: ms until the
--          background work looks at the resync; ARGV[7..]: further fields and values. Only if the
--          resync is in one of these states. Returns 1, or 0.
-- count    ARGV[4]: 'added' or 'removed'; ARGV[5]: number of users to add to it.
--          Returns 1.
-- look     Notes that a process looked at the resync. ARGV[4]: ms until the background work does so
--          again. Returns 1.
-- finish   ARGV[4]: members; ARGV[5]: ms to keep the record. Returns 1.
-- drop     Removes the record. Returns 1.
--
-- In each partition:
-- keep     ARGV[4]: ms to keep what is confirmed, counted from now. Returns 1.
-- clear    Ends it: members are no longer confirmed. Returns 1.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local action, cohort, id = ARGV[1], ARGV[2], ARGV[3]
local prefix = base .. 'cohort:' .. cohort
local record, confirmed, state = prefix .. ':resync', prefix .. ':confirmed', prefix .. ':state'
local confirmed_of = prefix .. ':confirmed-of'
local resyncs = base .. 'resyncs'
local call = redis.call

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function integer(value) return string.format('%d', value) end

-- There is no rollback: whatever can fail must fail before the first write.
expect('hash', record, state)
expect('set', confirmed)
expect('string', confirmed_of)
expect('zset', resyncs)

if action == 'keep' then
  call('PEXPIRE', confirmed_of, ARGV[4]) -- first, so that it does not outlive the other
  call('PEXPIRE', confirmed, ARGV[4])
  return 1
elseif action == 'clear' then
  -- Keep what a later resync has confirmed: several processes may end the same resync.
  local owner = call('GET', confirmed_of)
  if call('HGET', state, 'resync') == id then call('HDEL', state, 'resync', 'resync_mark') end
  if not owner or owner == id then call('UNLINK', confirmed, confirmed_of) end
  return 1
end

if call('HGET', record, 'id') ~= id then return 0 end

if action == 'change' then
  local current = call('HGET', record, 'state')
  if not string.find(' ' .. ARGV[4] .. ' ', ' ' .. current .. ' ', 1, true) then return 0 end
  call('HSET', record, 'state', ARGV[5], unpack(ARGV, 7))
  call('ZADD', resyncs, integer(now + ARGV[6]), cohort)
elseif action == 'count' then
  call('HINCRBY', record, ARGV[4], ARGV[5])
elseif action == 'look' then
  call('HSET', record, 'looked_at', integer(now))
  call('ZADD', resyncs, integer(now + ARGV[4]), cohort)
elseif action == 'finish' then
  call('HSET', record, 'state', 'finished', 'members', ARGV[4], 'finished', integer(now))
  call('PEXPIRE', record, ARGV[5])
  call('ZREM', resyncs, cohort)
elseif action == 'drop' then
  call('UNLINK', record)
  call('ZREM', resyncs, cohort)
end
return 1
