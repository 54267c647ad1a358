#!lua
-- Move some users of a renamed cohort from its earlier trait names to the current one.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  approximate number of users to look at
-- ARGV[3]  how many renames have reached all partitions, -1 if unknown; absent with a single
--          partition
--
-- Returns {1 if all users have been moved or the cohort is being deleted, else 0; users looked at},
-- or {-1, 0} if this partition has had a later rename, which must reach the other partitions first:
-- a finished rename is no longer spread. The position is stored in the same step as the moves, so
-- that a process that takes over after a crash continues from there.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local cohort, count = ARGV[1], ARGV[2]
local prefix = base .. 'cohort:' .. cohort
local state = prefix .. ':state'
local call, attempt = redis.call, redis.pcall

local trait, names, moving, deleting, renames, following =
  unpack(call('HMGET', state, 'trait', 'names', 'moving', 'deleting', 'renames', 'next'))
renames = tonumber(renames) or 0
-- The cohort has just been marked for deletion, which replaces the rename.
if deleting then return {1, 0} end
expect('set', base .. 'jobs')
if ARGV[3] and renames > tonumber(ARGV[3]) then return {-1, 0} end
if not moving then
  call('SREM', base .. 'jobs', cohort)
  return {1, 0}
end
names = cjson.decode(names or '[]')
local earlier = {}
for _, name in ipairs(names) do
  if not name.moved then earlier[#earlier + 1] = name.trait end
end

-- A ZSCAN cursor is not valid on another server process: start again there.
local run = string.match(call('INFO', 'server'), 'run_id:(%w+)')
local phase, cursor, run_then = string.match(moving, '^(%w+) (%d+) (%w+)$')
if run_then ~= run then phase, cursor = 'members', '0' end

local reply = call('ZSCAN', prefix .. ':' .. phase, cursor, 'COUNT', count)
local value = phase == 'members' and 'true' or 'false'
for i = 1, #reply[2], 2 do
  local user = base .. 'user:' .. reply[2][i]
  local removed = attempt('HDEL', user, unpack(earlier))
  if removed ~= 0 and not (type(removed) == 'table' and removed.err) then
    call('HSET', user, trait, value)
  end
end

cursor = reply[1]
if cursor == '0' and phase == 'left' and following and following ~= trait then
  -- Continue with a name that arrived while too many earlier names had users to be moved.
  local kept = {}
  for _, name in ipairs(names) do
    name.moved = true
    if name.trait ~= following then kept[#kept + 1] = name end
  end
  local now = store_time[1] * 1000 + math.floor(store_time[2] / 1000)
  kept[#kept + 1] = {trait = trait, ['until'] = now}
  call('HSET', state, 'trait', following, 'names', cjson.encode(kept), 'moving', '',
    'renames', string.format('%d', renames + 1))
  call('HDEL', state, 'next')
  return {0, #reply[2] / 2}
end
if cursor == '0' and phase == 'left' then
  call('HDEL', state, 'moving', 'next')
  call('SREM', base .. 'jobs', cohort)
  return {1, #reply[2] / 2}
end
if cursor == '0' then phase = 'left' end
call('HSET', state, 'moving', phase .. ' ' .. cursor .. ' ' .. run)
return {0, #reply[2] / 2}
