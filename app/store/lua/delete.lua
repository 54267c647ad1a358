#!lua flags=allow-oom
-- Delete a cohort from one partition: mark it, remove its users in steps, finish.
--
-- Allowed when memory is full, as deleting frees memory.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  'begin', 'mark', 'step' or 'end'
-- ARGV[2]  cohort id
-- ARGV[3]  begin, mark, end: random id of the deletion; step: maximum number of users
-- ARGV[4]  step: change stream: entries to keep; end: 'home' in the cohort's home partition
--
-- begin   Refuses requests for the cohort from now on, even if this partition has no users of it,
--         as another may. Returns the id of the deletion in progress, this one or an earlier one.
-- mark    The same, for a deletion that began in the first partition.
-- step    Removes traits and memberships of some users; members among them leave. Returns the
--         number of users, 0 if none is left or no deletion is in progress.
-- end     Ends this deletion. If this partition's users have been removed, its records of the
--         cohort are removed too, and the next request creates the cohort anew. The home partition
--         remembers for a while that it was deleted: if only differences arrive after that, the
--         cohort is incomplete. If users are left, the mark was set after the deletion was complete,
--         and only the mark is removed.

local stream = KEYS[1]
local base = string.sub(stream, 1, -#'changes' - 1)
local action, cohort = ARGV[1], ARGV[2]
local prefix = base .. 'cohort:' .. cohort
local members, left, state = prefix .. ':members', prefix .. ':left', prefix .. ':state'
local call, attempt = redis.call, redis.pcall

expect('set', base .. 'jobs')

if action == 'begin' or action == 'mark' then
  call(action == 'begin' and 'HSETNX' or 'HSET', state, 'deleting', ARGV[3])
  call('SADD', base .. 'jobs', cohort)
  return call('HGET', state, 'deleting')
end

-- Remember that the cohort was deleted, until it arrives again or is verified; see freshness.lua.
local function remember_deletion()
  local KEPT, KEPT_FOR, AT_ONCE = 10000, 366 * 24 * 3600 * 1000, 100
  local deleted, clock = base .. 'deleted', call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  call('ZADD', deleted, string.format('%d', now), cohort)
  local old = call('ZRANGE', deleted, '-inf', string.format('%d', now - KEPT_FOR), 'BYSCORE',
    'LIMIT', 0, AT_ONCE)
  if #old > 0 then call('ZREM', deleted, unpack(old)) end
  if call('ZCARD', deleted) > KEPT then
    call('ZREM', deleted, unpack(call('ZRANGE', deleted, 0, 0)))
  end
  call('PEXPIRE', deleted, KEPT_FOR)
end

local deletion, drained = unpack(call('HMGET', state, 'deleting', 'drained'))
if not deletion then return 0 end

local COMPLETENESS = {'verified', 'incomplete', 'store_lost', 'store_set_back', 'sync_failed',
  'deleted_here', 'count_differs'}

if action == 'end' then
  if deletion ~= ARGV[3] then return 0 end
  if not drained then
    call('HDEL', state, 'deleting')
    if call('HEXISTS', state, 'moving') == 0 then call('SREM', base .. 'jobs', cohort) end
    return 0
  end
  expect('zset', base .. 'resyncs', base .. 'due', base .. 'cohorts', base .. 'deleted')
  for _, name in ipairs(COMPLETENESS) do expect('zset', base .. 'completeness:' .. name) end
  call('UNLINK', members, left, state, prefix .. ':seen', prefix .. ':seen-before',
    prefix .. ':freshness', prefix .. ':sizes', prefix .. ':resync', prefix .. ':confirmed',
    prefix .. ':confirmed-of')
  call('ZREM', base .. 'resyncs', cohort)
  call('ZREM', base .. 'due', cohort)
  for _, name in ipairs(COMPLETENESS) do
    call('ZREM', base .. 'completeness:' .. name, cohort)
  end
  if ARGV[4] == 'home' then remember_deletion() end
  call('ZREM', base .. 'cohorts', cohort)
  call('SREM', base .. 'jobs', cohort)
  return 0
end

local trait, names = unpack(call('HMGET', state, 'trait', 'names'))
local traits = {trait}
for _, name in ipairs(names and cjson.decode(names) or {}) do traits[#traits + 1] = name.trait end

call('XLEN', stream) -- keys of another type must fail here, before the first write
local previous = call('GET', stream .. ':last') or '0-0'
local set = members
local users = call('ZRANGE', set, 0, ARGV[3] - 1)
if #users == 0 then
  set = left
  users = call('ZRANGE', set, 0, ARGV[3] - 1)
end
if #users == 0 then
  call('HSET', state, 'drained', 1)
  return 0
end
for i = 1, #users do attempt('HDEL', base .. 'user:' .. users[i], unpack(traits)) end
call('ZREM', set, unpack(users))
if set == members then
  local clock = call('TIME')
  call('HINCRBY', state, 'left', #users)
  local id = call('XADD', stream, 'MAXLEN', '~', ARGV[4], '*', 'cohort', cohort,
    'change', 'left', 'at', string.format('%d', clock[1] * 1000 + math.floor(clock[2] / 1000)),
    'users', cjson.encode(users), 'previous', previous)
  call('SET', stream .. ':last', id)
end
return #users
