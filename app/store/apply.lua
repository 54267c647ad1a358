#!lua
-- Apply membership changes of one request to one partition, in one atomic step.
--
-- Each user's hash, the cohort's members and the change stream change together, and only where
-- something really changes. docs/data-model.md describes the keys.
--
-- KEYS[1]   the change stream; its name gives the partition's other keys
-- ARGV[1]   'known' to apply only to registered users, else 'open'
-- ARGV[2]   'count' to return how many users changed, 'users' to return which
-- ARGV[3]   change stream: entries to keep
-- ARGV[4]   change stream: age to keep, in ms
-- ARGV[5]   way in, or '' where nothing was received
-- ARGV[6]   id of the message, or '' where it has none; a message is applied once
-- ARGV[7]   'named' where cohorts may be new, or renamed by this; 'met' to leave out those that are
--           not known here; 'as known' to leave out those that are not known by just this name
-- ARGV[8..] groups: cohort id, trait name, 'true' or 'false', time of the statement in ms since
--           the epoch or '' for the time of arrival, number of users, user ids. A (user, cohort)
--           stands in one group at most. A group of no users registers the cohort.
--
-- Returns {1 if the message was applied before, changed users, unknown users, suppressed users,
-- users whose key holds something else than a hash, ids of cohorts that are being deleted, for each
-- group of which users really entered or left: cohort id, 'true' or 'false', how many; and ids of
-- cohorts that were left out as they are not known, or not by this name}.

local stream = KEYS[1]
local base = string.sub(stream, 1, -#'changes' - 1)
local known_only, count_only = ARGV[1] == 'known', ARGV[2] == 'count'
local max_entries, max_age, way, message = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local met, as_known = ARGV[7] == 'met', ARGV[7] == 'as known'

-- How long a message is recognised, and an older statement about a member, in ms.
local HORIZON = 24 * 3600 * 1000
-- A cohort's earlier name that comes again within this time is a late retry; after it, a rename.
local LATE_NAME = 10 * 60 * 1000
local NAMES_KEPT = 50
local TRIM = 500
-- What a member's score can tell apart, in ms: a double of this size has no more digits until 2039.
local TICK = 1 / 4096

local call, attempt = redis.call, redis.pcall

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- What is too old is looked for by every call about many users, and by one of few where no other
-- was in this second: for a single user, these looks are a tenth of the work.
local many = #ARGV >= 100
local function is_due(last_call)
  return many or not last_call or math.floor(last_call / 1000) ~= math.floor(now / 1000)
end

-- A key of another type must fail here, before the first write: there is no rollback.
call('XLEN', stream)

local message_key = base .. 'message:' .. message
-- Of a message that was applied before, the users whom it left out then: they may be let in by now.
local left_out_before
if message ~= '' then
  local kept = call('GET', message_key)
  if kept then
    -- A write, so that a caller who then waits for replicas waits for what the first time wrote too.
    call('PEXPIRE', message_key, HORIZON)
    if kept == '1' then return {1, 0, {}, {}, {}, {}, {}, {}} end
    left_out_before = {}
    for _, user in ipairs(cjson.decode(kept)) do left_out_before[user] = true end
  end
end

local changes, changed, unknown, suppressed, conflicts, refused = 0, {}, {}, {}, {}, {}
local moves, unmet = {}, {}

local function number(value) return string.format('%d', value) end

local function note_changes(users)
  if not count_only then
    for i = 1, #users do changed[changes + i] = users[i] end
  end
  changes = changes + #users
end

-- The trait name to write, when the cohort was last received, and the earlier names to remove from
-- users who are touched; nil for a cohort that is left out.
local function resolve(state, cohort, trait, at, said)
  local current, names, moving, deleting, named, last =
    unpack(call('HMGET', state, 'trait', 'names', 'moving', 'deleting', 'named', 'last'))
  if as_known and current ~= trait or met and not current and not deleting then
    unmet[#unmet + 1] = cohort
    return nil
  end
  if deleting then
    refused[#refused + 1] = cohort
    return nil
  end
  if not current then
    call('HSET', state, 'trait', trait, 'named', number(at), 'first', number(now))
    call('ZADD', base .. 'cohorts', 0, cohort)
    return trait
  end
  if current == trait and said and at > tonumber(named) then
    call('HSET', state, 'named', number(at)) -- what says another name is late up to here
  end
  if current == trait and not moving then return trait, last end

  names = names and cjson.decode(names) or {}
  if current ~= trait then
    local late = said and at < tonumber(named)
    local kept = {}
    for _, earlier in ipairs(names) do
      if earlier.trait ~= trait then
        kept[#kept + 1] = earlier
      elseif not said and now - earlier['until'] < LATE_NAME then
        late = true
      end
    end
    if late then
      trait = current
    else
      kept[#kept + 1] = {trait = current, ['until'] = now}
      -- While users are moved, all names are needed to find what they still have.
      while not moving and #kept > NAMES_KEPT do table.remove(kept, 1) end
      names = kept
      call('HSET', state, 'trait', trait, 'named', number(at), 'names', cjson.encode(names),
        'moving', '')
      call('SADD', base .. 'jobs', cohort)
      moving = ''
    end
  end
  if not moving then return trait, last end
  local earlier = {}
  for i, name in ipairs(names) do earlier[i] = name.trait end
  return trait, last, earlier
end

-- The reply of a command on a user's hash; nil where the key is of another type.
local function checked(user, reply)
  if type(reply) == 'number' then return reply end
  conflicts[#conflicts + 1] = user
  return nil
end

local user_key = base .. 'user:'
local function set(user, trait, value)
  return checked(user, attempt('HSET', user_key .. user, trait, value))
end

local function remove(user, traits)
  return checked(user, attempt('HDEL', user_key .. user, unpack(traits))) or 0
end

-- Each entry names the one before it: who reads on from that one knows that none was trimmed
-- between the two.
local trim_stream = false
local function emit(cohort, change, at, users)
  local previous = call('GET', stream .. ':last') or '0-0'
  trim_stream = trim_stream or is_due(string.match(previous, '%d+'))
  local id = call('XADD', stream, 'MAXLEN', '~', max_entries, '*',
    'cohort', cohort, 'change', change, 'at', number(at), 'users', cjson.encode(users),
    'previous', previous)
  call('SET', stream .. ':last', id)
end

-- The score of the newest in a set.
local function newest(set)
  local last = call('ZRANGE', set, 0, 0, 'REV', 'WITHSCORES')
  return last[2] and tonumber(last[2]) or -math.huge
end

-- The score of users who enter at a time that the call carries. All calls of a webhook's sync carry
-- the same one, and among equal scores the store finds each user's place by comparing ids with those
-- of all the cohort. So those of each call come just after those of the last, in the same ms.
local function entry_score(at, newest_score)
  if math.floor(newest_score) == at and newest_score + TICK < at + 1 then
    return string.format('%.17g', newest_score + TICK)
  end
  return number(at)
end

local function apply(cohort, trait, value, said, users)
  local at = said and math.min(said, now) or now
  local prefix = base .. 'cohort:' .. cohort
  local members, left, seen, state =
    prefix .. ':members', prefix .. ':left', prefix .. ':seen', prefix .. ':state'

  local last, earlier
  trait, last, earlier = resolve(state, cohort, trait, at, said)
  if not trait then return end
  if way ~= '' then call('HSET', state, 'last', number(now), 'way:' .. way, number(now)) end
  if #users == 0 then return end

  local since = call('ZMSCORE', members, unpack(users))
  local newest_member = newest(members)
  -- Calls arrive nearly in order: most carry a time that nothing about the cohort is newer than.
  local in_order = not said
    or (at >= math.floor(newest_member) and at >= newest(left) and at >= newest(seen))
  local left_at = not in_order and call('ZMSCORE', left, unpack(users))
  local seen_at = not in_order and call('ZMSCORE', seen, unpack(users))
  local function stale(i)
    return (since[i] and at < math.floor(since[i])) or (left_at[i] and at < tonumber(left_at[i]))
      or (seen_at[i] and at < tonumber(seen_at[i]))
  end

  local moved, scored = {}, {}
  local when = number(at) -- once: a number that is passed on is written out each time
  local function remember(user)
    scored[#scored + 1] = when
    scored[#scored + 1] = user
  end

  local count = 0
  for i = 1, #users do
    local user = users[i]
    local member = since[i]
    if not in_order and stale(i) then
      -- a newer statement about this user has been applied
    elseif value == 'true' and member then
      remember(user)
      if earlier and remove(user, earlier) > 0 then
        set(user, trait, 'true')
        note_changes({user})
      end
    elseif value == 'true' or member then
      if set(user, trait, value) then
        if earlier then remove(user, earlier) end
        count = count + 1
        moved[count] = user
      end
    else
      -- Told to be out, and is not in: make sure that the field says so.
      local added = checked(user, attempt('HSETNX', user_key .. user, trait, 'false'))
      if added then
        local removed = earlier and remove(user, earlier) or 0
        if added + removed > 0 then note_changes({user}) end
        remember(user)
      end
    end
  end

  note_changes(moved)
  if #moved > 0 then
    local n = #moves
    moves[n + 1], moves[n + 2], moves[n + 3] = cohort, value, #moved
  end
  if value == 'true' then
    if #moved > 0 then
      local entries, score = {}, said and entry_score(at, newest_member) or when
      for i = 1, #moved do
        entries[2 * i - 1] = score
        entries[2 * i] = moved[i]
      end
      call('ZADD', members, unpack(entries))
      if call('EXISTS', left) == 1 then call('ZREM', left, unpack(moved)) end
      call('HINCRBY', state, 'entered', #moved)
      emit(cohort, 'entered', at, moved)
    end
    if #scored > 0 then call('ZADD', seen, 'GT', unpack(scored)) end
  else
    if #moved > 0 then
      call('ZREM', members, unpack(moved))
      call('ZREM', seen, unpack(moved))
      for i = 1, #moved do remember(moved[i]) end
      call('HINCRBY', state, 'left', #moved)
      emit(cohort, 'left', at, moved)
    end
    if #scored > 0 then call('ZADD', left, 'GT', unpack(scored)) end
  end
  if not is_due(last) then return end
  local forgotten = call('ZRANGE', seen, '-inf', now - HORIZON, 'BYSCORE', 'LIMIT', 0, TRIM)
  if #forgotten > 0 then call('ZREM', seen, unpack(forgotten)) end
end

-- Split users by whether they are in a set: those in it, those not.
local function split(set, users)
  local found = call('SMISMEMBER', set, unpack(users))
  local inside, outside = {}, {}
  for i = 1, #users do
    local side = found[i] == 1 and inside or outside
    side[#side + 1] = users[i]
  end
  return inside, outside
end

local function only(wanted, users)
  local found = {}
  for i = 1, #users do
    if wanted[users[i]] then found[#found + 1] = users[i] end
  end
  return found
end

local function append(list, more)
  for i = 1, #more do list[#list + 1] = more[i] end
end

local some_suppressed = call('EXISTS', base .. 'suppressed') == 1
local position = 8
while position <= #ARGV do
  local cohort, trait, value, said, count = unpack(ARGV, position, position + 4)
  local final = position + 4 + tonumber(count)
  local users = {unpack(ARGV, position + 5, final)}
  position = final + 1
  if left_out_before then users = only(left_out_before, users) end
  if some_suppressed and #users > 0 then
    local dropped
    dropped, users = split(base .. 'suppressed', users)
    append(suppressed, dropped)
  end
  if known_only and #users > 0 then
    local dropped
    users, dropped = split(base .. 'registered', users)
    append(unknown, dropped)
  end
  if #users > 0 or count == '0' then apply(cohort, trait, value, tonumber(said), users) end
end

if trim_stream then call('XTRIM', stream, 'MINID', '~', number(now - max_age)) end
-- Where the sender is told to come again, the message was not applied yet.
if message ~= '' and #conflicts + #refused + #unmet == 0 then
  local left_out = {}
  append(left_out, unknown)
  append(left_out, suppressed)
  call('SET', message_key, #left_out > 0 and cjson.encode(left_out) or 1, 'PX', HORIZON)
end
return {0, count_only and changes or changed, unknown, suppressed, conflicts, refused, moves, unmet}
