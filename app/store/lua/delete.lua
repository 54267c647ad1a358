#!lua flags=allow-oom
-- Delete a cohort from one partition: mark it, take some of its users out, finish.
--
-- It works where memory is full too: deleting makes room.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV[1]  'begin', 'mark', 'unmark', 'step' or 'finish'
-- ARGV[2]  cohort id
-- ARGV[3]  begin, mark, unmark: the deletion, a random name; step: users to take out at most
-- ARGV[4]  step: change stream, entries to keep
--
-- begin   from now on pushes for the cohort are refused, also where it was not known: another
--         partition knows it. Returns the deletion that is going on, this one or an earlier one.
-- mark    the same, for the deletion that is going on in the first partition.
-- unmark  undoes a mark that came too late: its deletion was finished before.
-- step    removes trait and membership of some users; the members among them leave. Returns how
--         many it found; 0 when there are no more.
-- finish  forgets the cohort. Only when no partition has users left: what comes then starts it
--         afresh.

local stream = KEYS[1]
local base = string.sub(stream, 1, -#'changes' - 1)
local action, cohort = ARGV[1], ARGV[2]
local prefix = base .. 'cohort:' .. cohort
local members, left, seen, state =
  prefix .. ':members', prefix .. ':left', prefix .. ':seen', prefix .. ':state'
local call, attempt = redis.call, redis.pcall

if action == 'begin' or action == 'mark' then
  call(action == 'begin' and 'HSETNX' or 'HSET', state, 'deleting', ARGV[3])
  call('SADD', base .. 'jobs', cohort)
  return call('HGET', state, 'deleting')
end

local deletion, drained = unpack(call('HMGET', state, 'deleting', 'drained'))
if not deletion then return 0 end

if action == 'unmark' then
  if deletion == ARGV[3] and not drained then
    call('HDEL', state, 'deleting')
    if call('HEXISTS', state, 'moving') == 0 then call('SREM', base .. 'jobs', cohort) end
  end
  return 0
end

if action == 'finish' then
  if not drained then return 0 end
  call('UNLINK', members, left, seen, state, prefix .. ':freshness', prefix .. ':sizes')
  call('ZREM', base .. 'due', cohort)
  call('ZREM', base .. 'cohorts', cohort)
  call('SREM', base .. 'jobs', cohort)
  return 0
end

local trait, names = unpack(call('HMGET', state, 'trait', 'names'))
local traits = {trait}
for _, name in ipairs(names and cjson.decode(names) or {}) do traits[#traits + 1] = name.trait end

call('XLEN', stream) -- must fail here rather than after the first write
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
    'users', cjson.encode(users), 'previous', call('GET', stream .. ':last') or '0-0')
  call('SET', stream .. ':last', id)
end
return #users
