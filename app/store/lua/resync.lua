#!lua
-- Begin, advance and end a cohort's resync: its record in the home partition, and what each
-- partition keeps for it. app/store/resyncs.py describes the steps.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  action
-- ARGV[2]  cohort id
-- ARGV[3]  id of the resync
--
-- In the home partition; all but open return 0 unless the record is that of this resync:
-- open     ARGV[4]: kind; ARGV[5]: quiet ms, or ''. Begins a resync in state 'opening', unless
--          another one is unfinished. Returns 1, or 0.
-- change   ARGV[4]: states, separated by spaces; ARGV[5]: new state; ARGV[6]: ms until the
--          background work looks at the resync; ARGV[7..]: further fields and values. Only if the
--          resync is in one of these states. Returns 1, or 0.
-- count    ARGV[4]: 'added', 'unknown' or 'removed'; ARGV[5]: number of users to add to it.
--          Returns 1.
-- look     ARGV[4]: ms until the background work looks at the resync again. Returns 1.
-- finish   ARGV[4]: members; ARGV[5]: ms to keep the record. Returns 1.
-- drop     Removes the record. Returns 1.
--
-- In each partition:
-- mark     ARGV[4]: ms to keep what is confirmed. From now on, apply.lua confirms members, if the
--          partition knows the cohort. Returns 1, or 0 if it does not. Remembers the identity of
--          the partition (mark.lua): after a loss, nobody knows who was confirmed.
-- keep     ARGV[4]: ms to keep what is confirmed, counted from now. Returns 1.
-- stage    ARGV[4]: ms to keep them; ARGV[5..]: users who count as confirmed. Returns {how many are
--          new, or -1 if those before them are gone; confirmations in this partition, see mark.lua}.
-- clear    Ends it: members are no longer confirmed. Returns 1.
--
-- What is confirmed may expire unnoticed: the store's clock may jump, or no process may renew it.
-- The users confirmed after that would then look like the complete set. So `confirmed-of` names the
-- resync, from its beginning on, and expires at the same time: without it, nobody may be removed.

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
expect('hash', record, state, prefix .. ':freshness', base .. 'mark')
expect('set', confirmed)
expect('string', confirmed_of)
expect('zset', resyncs)

if action == 'open' then
  local current = call('HGET', record, 'state')
  if current and current ~= 'finished' then return 0 end
  call('UNLINK', record)
  call('HSET', record, 'id', id, 'kind', ARGV[4], 'state', 'opening', 'quiet', ARGV[5],
    'started', integer(now))
  -- Who was left out before; see freshness.lua.
  local left_out = call('HGET', prefix .. ':freshness', 'left_out')
  call('HSET', record, 'left_out', left_out or '{}')
  call('ZADD', resyncs, integer(now), cohort)
  return 1
end

local function keep(ms)
  call('PEXPIRE', confirmed_of, ms) -- first, so that it does not outlive the other
  call('PEXPIRE', confirmed, ms)
end

if action == 'mark' then
  call('UNLINK', confirmed)
  call('SET', confirmed_of, id, 'PX', ARGV[4])
  if call('HEXISTS', state, 'trait') == 0 then return 0 end
  call('HSETNX', base .. 'mark', 'identity', id)
  call('HSET', state, 'resync', id, 'resync_mark', call('HGET', base .. 'mark', 'identity'))
  return 1
elseif action == 'keep' then
  keep(ARGV[4])
  return 1
elseif action == 'stage' then
  if call('GET', confirmed_of) ~= id then return {-1, 0} end
  local confirmations = call('HINCRBY', base .. 'mark', 'confirmations', 1)
  local added = call('SADD', confirmed, unpack(ARGV, 5))
  keep(ARGV[4])
  return {added, confirmations}
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
