#!lua
-- Apply membership changes of one request to one partition, in one atomic step.
--
-- Each user's hash, the cohort's members and the change stream change together, and only where
-- something really changes. Nothing else in the project writes to these keys.
--
-- KEYS[1]   the change stream; its name gives the partition's other keys
-- ARGV[1]   '1' to apply only to registered users, else '0'
-- ARGV[2]   time of the statements in ms since the epoch, or '' for the time of arrival
-- ARGV[3]   change stream: entries to keep
-- ARGV[4]   change stream: age to keep, in ms
-- ARGV[5..] for each group: cohort id, trait name, 'true' or 'false', number of users, user ids;
--           a user stands at most once in a group, and a (user, cohort) at most once in all
--
-- Returns {changed users, unknown users, users whose key holds something else than a hash},
-- each an array of user ids, a user once for each group.

local stream = KEYS[1]
local base = string.sub(stream, 1, -#'changes' - 1)
local known_only = ARGV[1] == '1'
local max_entries, max_age = ARGV[3], tonumber(ARGV[4])

-- An older statement than the last one is recognised for this long, in ms.
local HORIZON = 24 * 3600 * 1000
local TRIM = 500

local call, pcall_ = redis.call, redis.pcall

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local said = tonumber(ARGV[2])
local at = said and math.min(said, now) or now

-- A key of another type must fail here, before the first write: there is no rollback.
call('XLEN', stream)

local changed, unknown, conflicts = {}, {}, {}

local function emit(cohort, change, users)
  if #users == 0 then return end
  call('XADD', stream, 'MAXLEN', '~', max_entries, '*',
    'cohort', cohort, 'change', change, 'at', string.format('%d', at), 'users', cjson.encode(users))
end

-- Write one field of a user's hash. False where the key is of another type.
local function write(command, user, trait, value)
  local reply = pcall_(command, base .. 'user:' .. user, trait, value)
  if type(reply) == 'table' and reply.err then
    conflicts[#conflicts + 1] = user
    return false
  end
  return reply
end

local function apply(cohort, trait, value, users)
  local members = base .. 'cohort:' .. cohort .. ':members'
  -- The times of last statements that `members` doesn't hold: of users who left, and of members
  -- who were told again that they are in.
  local times = base .. 'cohort:' .. cohort .. ':times'

  local since = call('ZMSCORE', members, unpack(users))
  local last = said and call('ZMSCORE', times, unpack(users))
  local moved, again, add, again_at = {}, {}, {}, {}

  for i = 1, #users do
    local user, score = users[i], since[i]
    local stale = said and
      ((score and at < tonumber(score)) or (last[i] and at < tonumber(last[i])))
    if stale then
      -- a newer statement has been applied
    elseif value == 'true' then
      if score then
        again[#again + 1] = user
      elseif write('HSET', user, trait, 'true') then
        moved[#moved + 1] = user
        add[#add + 1] = at
        add[#add + 1] = user
      end
    elseif score then
      if write('HSET', user, trait, 'false') then
        moved[#moved + 1] = user
        again[#again + 1] = user
      end
    else
      -- Never was a member, or has left before: only make sure that the field is there.
      if write('HSETNX', user, trait, 'false') == 1 then changed[#changed + 1] = user end
      again[#again + 1] = user
    end
  end

  if #moved > 0 then
    if value == 'true' then
      call('ZADD', members, unpack(add))
      emit(cohort, 'entered', moved)
    else
      call('ZREM', members, unpack(moved))
      emit(cohort, 'left', moved)
    end
    for i = 1, #moved do changed[#changed + 1] = moved[i] end
  end
  if #again > 0 then
    for i = 1, #again do
      again_at[2 * i - 1] = at
      again_at[2 * i] = again[i]
    end
    call('ZADD', times, 'GT', unpack(again_at))
  end
  local forgotten = call('ZRANGE', times, '-inf', now - HORIZON, 'BYSCORE', 'LIMIT', 0, TRIM)
  if #forgotten > 0 then call('ZREM', times, unpack(forgotten)) end
end

local position = 5
while position <= #ARGV do
  local cohort, trait, value, count = unpack(ARGV, position, position + 3)
  local first, final = position + 4, position + 3 + tonumber(count)
  local users = {unpack(ARGV, first, final)}
  if known_only then
    local known = call('SMISMEMBER', base .. 'registered', unpack(users))
    local kept = {}
    for i = 1, #users do
      if known[i] == 1 then kept[#kept + 1] = users[i] else unknown[#unknown + 1] = users[i] end
    end
    users = kept
  end
  if #users > 0 then apply(cohort, trait, value, users) end
  position = final + 1
end

if #changed > 0 then
  call('XTRIM', stream, 'MINID', '~', string.format('%d', now - max_age))
end
return {changed, unknown, conflicts}
