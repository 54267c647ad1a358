#!lua
-- Begin a cohort's resync, add the users of a file to it, and note that it is quiet. resync.lua does
-- all else.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  action
-- ARGV[2]  cohort id
-- ARGV[3]  id of the resync
--
-- open     In the home partition. ARGV[4]: kind; ARGV[5]: quiet ms, or ''. Begins a resync in state
--          'opening', unless another one is unfinished. Returns 1, or 0.
-- quiet    In the home partition. ARGV[4]: the time in ms. Notes that the open resync was found quiet.
--          Refused when memory is full: requests fail then, and nothing can record that they did.
--          Returns 1, or 0 if the resync is not open.
-- mark     In each partition. ARGV[4]: ms to keep what is confirmed. From now on, apply.lua confirms
--          members, if the partition knows the cohort. Returns 1, or 0 if it does not, or was marked
--          before. Remembers the identity of the partition (mark.lua): after a loss, nobody knows who
--          was confirmed.
-- stage    In each partition. ARGV[5..]: users to confirm; ARGV[4]: ms to keep them.
--          Returns {how many are new, or -1 if those staged earlier are gone; confirmations in this
--          partition, see mark.lua}.
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

local function integer(value) return string.format('%d', value) end

-- There is no rollback: whatever can fail must fail before the first write.
expect('hash', record, state, prefix .. ':freshness', base .. 'mark')
expect('set', confirmed)
expect('string', confirmed_of)
expect('zset', resyncs)

if action == 'open' then
  local current = call('HGET', record, 'state')
  if current and current ~= 'finished' then return 0 end
  local clock = call('TIME')
  local now = integer(clock[1] * 1000 + math.floor(clock[2] / 1000))
  call('UNLINK', record)
  call('HSET', record, 'id', id, 'kind', ARGV[4], 'state', 'opening', 'quiet', ARGV[5],
    'started', now)
  -- Who was left out before; see freshness.lua.
  local left_out = call('HGET', prefix .. ':freshness', 'left_out')
  call('HSET', record, 'left_out', left_out or '{}')
  call('ZADD', resyncs, now, cohort)
  return 1
elseif action == 'quiet' then
  local owner, current = unpack(call('HMGET', record, 'id', 'state'))
  if owner ~= id or current ~= 'open' then return 0 end
  call('HSET', record, 'quiet_at', ARGV[4])
  return 1
elseif action == 'mark' then
  -- Two processes may open the same resync: what was confirmed since the first mark stays.
  if call('GET', confirmed_of) == id then return 0 end
  call('UNLINK', confirmed)
  call('SET', confirmed_of, id, 'PX', ARGV[4])
  if call('HEXISTS', state, 'trait') == 0 then return 0 end
  call('HSETNX', base .. 'mark', 'identity', id)
  call('HSET', state, 'resync', id, 'resync_mark', call('HGET', base .. 'mark', 'identity'))
  return 1
end
if call('GET', confirmed_of) ~= id then return {-1, 0} end
local confirmations = call('HINCRBY', base .. 'mark', 'confirmations', 1)
local added = call('SADD', confirmed, unpack(ARGV, 5))
call('PEXPIRE', confirmed_of, ARGV[4]) -- first, so that it does not outlive the other
call('PEXPIRE', confirmed, ARGV[4])
return {added, confirmations}
