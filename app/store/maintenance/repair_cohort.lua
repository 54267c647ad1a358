#!lua
-- Make a cohort's records in one partition agree with its members.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  trait name to use if the cohort's own is lost

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local cohort = ARGV[1]
local prefix = base .. 'cohort:' .. cohort
local members, left, state = prefix .. ':members', prefix .. ':left', prefix .. ':state'
local call = redis.call

local trait, deleting = unpack(call('HMGET', state, 'trait', 'deleting'))
local count = call('ZCARD', members)

if not trait and count == 0 and call('EXISTS', left) == 0 and not deleting then
  call('UNLINK', state, prefix .. ':seen', prefix .. ':seen-before', prefix .. ':freshness',
    prefix .. ':sizes')
  call('ZREM', base .. 'cohorts', cohort)
  call('ZREM', base .. 'due', cohort)
  for _, name in ipairs({'verified', 'incomplete', 'store_lost', 'store_set_back', 'sync_failed',
    'deleted_here', 'count_differs'}) do
    call('ZREM', base .. 'completeness:' .. name, cohort)
  end
  call('SREM', base .. 'jobs', cohort)
  return
end

if not trait then
  local clock = call('TIME')
  local first = call('ZRANGE', members, 0, 0, 'WITHSCORES')[2]
  first = first or clock[1] * 1000 + math.floor(clock[2] / 1000)
  -- The time of the name is unknown, so any name that arrives is newer.
  call('HSET', state, 'trait', ARGV[2], 'named', '0', 'first', string.format('%d', first))
end
call('ZADD', base .. 'cohorts', 0, cohort)
local gone = tonumber(call('HGET', state, 'left') or 0)
call('HSET', state, 'entered', string.format('%d', gone + count))

local work = deleting or call('HEXISTS', state, 'moving') == 1
call(work and 'SADD' or 'SREM', base .. 'jobs', cohort)
