#!lua
-- Apply one request's membership changes to one partition, in one atomic step.
--
-- A user's hash, the cohort's members and the change stream change together, and only where a
-- membership really changes, so a repeated request changes nothing. docs/data-model.md describes
-- the keys, docs/decisions/order.md which of two statements counts.
--
-- KEYS[1]    the partition's change stream; the names of all other keys derive from it
-- ARGV[1]    'known' to skip users who are neither registered nor members of the cohort, else 'open'
-- ARGV[2]    'count' to return the number of changed users, 'users' to return their ids
-- ARGV[3]    change stream: entries to keep
-- ARGV[4]    change stream: age to keep, in ms
-- ARGV[5]    source of the request, or '' for a call that no request caused
-- ARGV[6]    message id, or ''; a message is applied once, a repeat only to users left out before
-- ARGV[7]    'named': an unknown cohort is created, another trait name renames a known one;
--            'met': skip unknown cohorts;
--            'as known': skip cohorts that are unknown or have another trait name;
--            'resync <id>': remove members whom this resync has not confirmed;
--            'spread <n>': the names of another partition, which has had n renames;
--            any of them followed by ' of <id>': nobody enters unless this import is open
-- ARGV[8]    how many ms ago the request arrived, 0 if it was just now
-- ARGV[9..]  groups, each: cohort id, trait name, 'true' or 'false', time of the statement in ms
--            since the epoch or '' for the time of arrival, number of users, user ids.
--            A (user, cohort) pair is in one group at most. A group without users registers the
--            cohort.
--
-- There is no rollback: whatever can fail must fail before the first write about a cohort.
--
-- Returns {1 if the message was applied before and left nobody out, else 0; changed users}, followed
-- by the name and the content of each list below that is not empty:
--   moves       for each group that changed memberships: cohort id, 'true' or 'false', how many,
--               id of the entry in the change stream
--   unknown     users skipped because they are neither registered nor members, by cohort:
--   unknown in  for each cohort whose users are in 'unknown': its id, and how many
--   suppressed  users skipped because they were erased and suppressed
--   conflicts   users skipped because their key is not a hash
--   deleting    ids of cohorts skipped because they are being deleted
--   unmet       ids of cohorts skipped because of ARGV[7]
--   renamed     ids of cohorts that have another name now
--   confirmations  how many calls have changed who is confirmed in resyncs, if this one did
--   created     ids of cohorts that were unknown in this partition

local stream = KEYS[1]
local base = string.sub(stream, 1, -#'changes' - 1)
local known_only, count_only = ARGV[1] == 'known', ARGV[2] == 'count'
local max_entries, max_age, source, message, mode, waited = unpack(ARGV, 3, 8)
waited = tonumber(waited)
local import = string.match(mode, ' of (%w+)$')
if import then mode = string.sub(mode, 1, -#(' of ' .. import) - 1) end
local spread = tonumber(string.match(mode, '^spread (%d+)$'))

-- How long a message id, and the time of a statement about a member, is remembered, in ms.
local HORIZON = 24 * 3600 * 1000
-- The clocks of two servers, before and after a failover, may differ by this many ms. A stored time
-- that is further ahead is from a clock that was wrong: it says nothing about order.
local SKEW = 2 * 60 * 1000

local call = redis.call

-- The store writes Lua's large numbers in scientific notation.
local function integer(value) return string.format('%d', value) end

local now = store_time[1] * 1000 + math.floor(store_time[2] / 1000) -- see connection/fence.py
local now_text = integer(now)

-- A stored time, at most the present one; nil if there is none, or if it is from a wrong clock.
-- Members' scores may have a fraction, see entry_score.
local function past(stored)
  local time = stored and math.floor(tonumber(stored))
  return time and time <= now + SKEW and math.min(time, now) or nil
end

-- Calls about many users always remove what is too old. For calls about few, that would be a tenth
-- of the work, so only the first in a second does it.
local many = #ARGV >= 100
local this_second = now - now % 1000
local function is_due(last_call)
  if many then return true end
  local last = tonumber(last_call or 0)
  return last < this_second or last > now -- the clock was ahead
end

-- Keys of another type fail here.
call('XLEN', stream)
local last_entry = call('GET', stream .. ':last') or '0-0'

local message_key = base .. 'message:' .. message
-- Hashes of the users whom the message's first delivery left out; they are tried again, as they may
-- be registered by now. Hashes, so that nothing is left of a user who is erased.
local left_out_before
local function user_hash(user) return string.sub(redis.sha1hex(user), 1, 16) end
if message ~= '' then
  local kept = call('GET', message_key)
  if kept then
    -- A write, so that waiting for replicas after this call covers what the first delivery wrote.
    call('PEXPIRE', message_key, HORIZON)
    if kept == '1' then return {1, count_only and 0 or {}} end
    left_out_before = {}
    for _, hash in ipairs(cjson.decode(kept)) do left_out_before[hash] = true end
  end
end

-- Results -----------------------------------------------------------------------------------------

-- Lists of the reply, by name. Empty ones are left out: each would make the step of a
-- single identify 1.5% slower.
local reported = {}
local function report(name, items)
  local list = reported[name]
  if not list then
    reported[name] = items
  else
    for i = 1, #items do list[#list + 1] = items[i] end
  end
end

local change_count, changed = 0, {}
local function note_changed(users)
  if not count_only then
    for i = 1, #users do changed[change_count + i] = users[i] end
  end
  change_count = change_count + #users
end

-- Writes ------------------------------------------------------------------------------------------

local user_key = base .. 'user:'

-- Run a command on a user's hash. Returns nil, and reports the user, if the key is not a hash.
local function on_hash(command, user, ...)
  local reply = redis.pcall(command, user_key .. user, ...)
  if type(reply) == 'number' then return reply end
  report('conflicts', {user})
  return nil
end

-- Each entry names the one before it, so that a reader can tell whether it missed trimmed entries.
local trim_stream = false
local function emit(cohort, change, at, users)
  trim_stream = trim_stream or is_due(string.match(last_entry, '%d+'))
  local id = call('XADD', stream, 'MAXLEN', '~', max_entries, '*',
    'cohort', cohort, 'change', change, 'at', at, 'users', cjson.encode(users),
    'previous', last_entry)
  call('SET', stream .. ':last', id)
  last_entry = id
end

-- The arguments with which ZADD gives all users the same score.
local function scored(score, users)
  local arguments = {}
  for i = 1, #users do
    arguments[2 * i - 1] = score
    arguments[2 * i] = users[i]
  end
  return unpack(arguments)
end

-- Resyncs -----------------------------------------------------------------------------------------

-- Whether this call removes members whom a resync has not confirmed.
local removing = string.sub(mode, 1, #'resync ') == 'resync '

-- The members among some users whom a resync has not confirmed; none if it is no longer open, if the
-- partition lost data since it was opened, or if what was confirmed has expired.
local function unconfirmed(prefix, resync, users)
  if mode ~= 'resync ' .. (resync or '') then return {} end
  if call('GET', prefix .. ':confirmed-of') ~= resync then return {} end
  local marked = call('HGET', prefix .. ':state', 'resync_mark')
  if marked and marked ~= call('HGET', base .. 'mark', 'identity') then return {} end
  local found = call('SMISMEMBER', prefix .. ':confirmed', unpack(users))
  local since = call('ZMSCORE', prefix .. ':members', unpack(users))
  local rest = {}
  for i = 1, #users do
    if found[i] == 0 and since[i] then rest[#rest + 1] = users[i] end
  end
  return rest
end

-- While a resync is open: users stated to be members are confirmed; users who left no longer are.
local function note_confirmed(prefix, entering, users, since, moved)
  local stated = moved
  if entering then
    stated = {unpack(moved)}
    for i = 1, #users do
      if since[i] then stated[#stated + 1] = users[i] end
    end
  end
  if #stated == 0 then return end
  call(entering and 'SADD' or 'SREM', prefix .. ':confirmed', unpack(stated))
  -- Counted, because no stream entry shows whether a failover lost this.
  report('confirmations', {call('HINCRBY', base .. 'mark', 'confirmations', 1)})
end

-- Arguments with which ZADD sets each user's score to the time of the last statement about that
-- user: the latest of the user's scores in some sets.
local function last_statements(users, sets)
  local latest = {}
  for _, set in ipairs(sets) do
    local times = call('ZMSCORE', set, unpack(users))
    for i = 1, #users do
      local time = past(times[i])
      if time and time > (latest[i] or -math.huge) then latest[i] = time end
    end
  end
  local arguments = {}
  for i = 1, #users do
    arguments[2 * i - 1] = integer(latest[i] or 0)
    arguments[2 * i] = users[i]
  end
  return unpack(arguments)
end

-- A cohort's name ---------------------------------------------------------------------------------

-- How many earlier names may still have users to be moved. Each makes every user cost more.
local UNMOVED_NAMES = 10
local NAMES_KEPT, NAMES_BYTES = 50, 6144
-- An earlier name that arrives within this time is a late retry; after it, a rename. In ms.
local LATE_NAME = 10 * 60 * 1000

-- Rename a cohort that arrives under another trait name, unless that is an earlier name in a late
-- retry. Returns the current name, and whether users are still to be moved from earlier ones.
local function rename(cohort, state, current, trait, at, stated_at, may_be_late, named, moving)
  local names, renames = unpack(call('HMGET', state, 'names', 'renames'))
  renames = tonumber(renames) or 0
  local late = spread and spread < renames or not spread and may_be_late and named and at < named
  local kept, unmoved = {}, 0
  for _, earlier in ipairs(cjson.decode(names or '[]')) do
    if not moving then earlier.moved = true end
    if earlier.trait ~= trait then
      kept[#kept + 1] = earlier
      if not earlier.moved then unmoved = unmoved + 1 end
    elseif not spread and not stated_at and math.abs(now - earlier['until']) < LATE_NAME then
      late = true
    end
  end
  if late then return current, moving end
  if unmoved >= UNMOVED_NAMES then
    -- The new name is used once the users of earlier names have been moved; see move.lua.
    call('HSET', state, 'next', trait, 'named', integer(math.max(at, named or at)))
    return current, moving
  end

  kept[#kept + 1] = {trait = current, ['until'] = now}
  local bytes = 0
  for _, earlier in ipairs(kept) do bytes = bytes + #earlier.trait end
  while #kept > NAMES_KEPT or bytes > NAMES_BYTES and #kept > UNMOVED_NAMES do
    bytes = bytes - #table.remove(kept, 1).trait -- the oldest: its users have been moved
  end
  call('SADD', base .. 'jobs', cohort)
  call('HSET', state, 'trait', trait, 'named', integer(at), 'names', cjson.encode(kept),
    'moving', '', 'renames', integer(spread or renames + 1))
  call('HDEL', state, 'next')
  if not spread then report('renamed', {cohort}) end
  return trait, ''
end

-- The trait names from which users are still to be moved.
local function unmoved_names(state)
  local unmoved = {}
  for _, name in ipairs(cjson.decode(call('HGET', state, 'names') or '[]')) do
    if not name.moved then unmoved[#unmoved + 1] = name.trait end
  end
  return #unmoved > 0 and unmoved
end

-- Time --------------------------------------------------------------------------------------------

-- The highest score in a set.
local function newest(set)
  local last = call('ZRANGE', set, 0, 0, 'REV', 'WITHSCORES')
  return last[2] and tonumber(last[2]) or -math.huge
end

-- The positions of users about whom a newer statement was applied. The scores in each set are the
-- times of the last statements.
local function find_stale(at, users, since, others)
  local stale = {}
  local function compare(scores)
    for i = 1, #users do
      local last = past(scores[i])
      if last and at < last then stale[i] = true end
    end
  end
  compare(since)
  for _, set in ipairs(others) do
    if at < newest(set) then compare(call('ZMSCORE', set, unpack(users))) end
  end
  return stale
end

-- The score of users who enter at a time that the request carries. All requests of a webhook's sync
-- carry the same one. With equal scores, the store would order members by comparing ids across the
-- whole cohort, which is slow. So each request's users get scores just above those of the previous
-- request, within the same ms.
local function entry_score(at, newest_score)
  -- The smallest difference between two such times that a double can hold, until 2039.
  local TICK = 1 / 4096
  if math.floor(newest_score) == at and newest_score + TICK < at + 1 then
    return string.format('%.17g', newest_score + TICK)
  end
  return integer(at)
end

-- Repeats -----------------------------------------------------------------------------------------

-- When members were last reported as members again: a sorted set that covers at most the last day,
-- and one for the day before that, which expire as a whole. They must not be trimmed by their
-- scores: a statement may be old when it arrives.

local function remember_repeats(seen, before, at_text, users)
  local left = call('PTTL', seen)
  if left >= 0 and left <= HORIZON then -- its first record is a day old
    call('RENAME', seen, before)
    left = -2
  elseif call('EXISTS', before) == 1 then
    call('ZREM', before, unpack(users))
  end
  call('ZADD', seen, scored(at_text, users))
  -- The second condition: the clock was set back.
  if left < 0 or left > 2 * HORIZON then call('PEXPIRE', seen, 2 * HORIZON) end
end

-- A group -----------------------------------------------------------------------------------------

local function apply(cohort, trait, value, stated_at, users)
  local at = stated_at and math.min(stated_at, now) or now - waited
  local may_be_late = stated_at or waited > 0
  local at_text = may_be_late and integer(at) or now_text
  local entering = value == 'true'
  local change = entering and 'entered' or 'left'
  local prefix = base .. 'cohort:' .. cohort
  local members, left, state = prefix .. ':members', prefix .. ':left', prefix .. ':state'
  local seen, before = prefix .. ':seen', prefix .. ':seen-before'

  local current, moving, deleting, named, last, total, timed, repeated, resync =
    unpack(call('HMGET', state, 'trait', 'moving', 'deleting', 'named', 'last', change, 'timed',
      'repeated', 'resync'))
  -- The import may have ended, or another one may have begun, since its users were read.
  if import and call('GET', prefix .. ':confirmed-of') ~= import then return end
  if mode == 'as known' and current ~= trait
    or mode == 'met' and not current and not deleting
  then
    return report('unmet', {cohort})
  end
  if deleting then return report('deleting', {cohort}) end
  if removing then
    users = unconfirmed(prefix, resync, users)
    if #users == 0 then return end
    trait = current
  end

  -- Keys of another type fail here.
  local some_left, some_users = call('ZCARD', left) > 0, #users > 0
  if resync then
    call('SISMEMBER', prefix .. ':confirmed', '')
    call('HGET', base .. 'mark', 'confirmations')
  end
  local since = some_users and call('ZMSCORE', members, unpack(users))
  named, total = past(named), tonumber(total) or 0
  local newest_unrecorded = past(repeated)
  local score, stale = at_text, {}
  local keeps_repeats = stated_at or timed
  local newest_repeat -- only if a statement about this cohort may be older than another
  if some_users and (keeps_repeats or may_be_late or removing) then
    newest_repeat = math.max(newest(seen), newest(before))
  end
  if some_users and may_be_late then
    local newest_member = newest(members)
    score = entry_score(at, newest_member)
    -- Requests arrive nearly in order: for most, nothing about the cohort is newer.
    if at < math.floor(newest_member) or at < newest_repeat or at < newest(left) then
      stale = find_stale(at, users, since, {left, seen, before})
    end
    -- Some members were reported again later than this, but it is unknown which.
    if stated_at and newest_unrecorded and at < newest_unrecorded and now - newest_unrecorded < HORIZON then
      for i = 1, #users do
        if since[i] then stale[i] = true end
      end
    end
  end
  -- If the store's clock was ahead, members' times are corrected when they are next reported.
  local ahead = some_users and is_due(last) and newest(members) > now + SKEW

  -- The fields of the cohort's state that this group changes, written in one command.
  local fields = {}
  local function set(field, text)
    fields[#fields + 1] = field
    fields[#fields + 1] = text
  end

  if not current then
    call('ZADD', base .. 'cohorts', 0, cohort)
    call('HSET', state, 'trait', trait, 'named', at_text, 'first', now_text)
    report('created', {cohort})
    if spread then set('renames', integer(spread)) end
  elseif current ~= trait then
    trait, moving = rename(cohort, state, current, trait, at, stated_at, may_be_late, named, moving)
  else
    if not named or at >= named then
      set('named', at_text) -- any other name up to this time is late
      if moving then call('HDEL', state, 'next') end
    end
    if spread then set('renames', integer(math.max(spread, call('HGET', state, 'renames') or 0))) end
  end

  if source ~= '' then
    set('last', now_text)
    set('source:' .. source, now_text)
  end
  if not some_users then
    if #fields > 0 then call('HSET', state, unpack(fields)) end
    return
  end

  if stated_at and not timed then set('timed', '1') end
  if repeated and not newest_unrecorded then set('repeated', '0') end

  local earlier = moving and unmoved_names(state) -- trait names to remove from these users

  -- Users who entered or left, and users whose membership is as stated already.
  local moved, confirmed, corrected = {}, {}, {}
  for i = 1, #users do
    local user, member = users[i], since[i]
    if stale[i] then
      -- a newer statement about this user has been applied
    elseif entering and member then
      -- The score is already the time of the last statement, unless this one is newer.
      local known = keeps_repeats and past(member)
      if not known or at > known then confirmed[#confirmed + 1] = user end
      if ahead and not past(member) then corrected[#corrected + 1] = user end
      if earlier and (on_hash('HDEL', user, unpack(earlier)) or 0) > 0 then
        on_hash('HSET', user, trait, 'true')
        note_changed({user})
      end
    elseif entering or member then
      if on_hash('HSET', user, trait, value) then
        if earlier then on_hash('HDEL', user, unpack(earlier)) end
        moved[#moved + 1] = user
      end
    else
      -- Not a member, as stated. The field must say so too.
      local added = on_hash('HSETNX', user, trait, 'false')
      if added then
        local removed = earlier and on_hash('HDEL', user, unpack(earlier)) or 0
        if added + removed > 0 then note_changed({user}) end
        confirmed[#confirmed + 1] = user
      end
    end
  end

  if #moved > 0 then
    if entering then
      call('ZADD', members, scored(score, moved))
      if some_left then call('ZREM', left, unpack(moved)) end
    elseif removing then
      -- As if they had left just after the last statement about them, so that a request of the full
      -- sync that arrives late still counts.
      call('ZADD', left, last_statements(moved, {members, seen, before}))
      call('ZREM', members, unpack(moved))
      call('ZREM', seen, unpack(moved))
      call('ZREM', before, unpack(moved))
    else
      call('ZREM', members, unpack(moved))
      if newest_repeat and newest_repeat > -math.huge then
        call('ZREM', seen, unpack(moved))
        call('ZREM', before, unpack(moved))
      end
      call('ZADD', left, scored(at_text, moved))
    end
    emit(cohort, change, at_text, moved)
    note_changed(moved)
    report('moves', {cohort, value, #moved, last_entry})
    set(change, integer(total + #moved))
  end
  if #corrected > 0 then call('ZADD', members, scored(at_text, corrected)) end
  if resync and not removing then note_confirmed(prefix, entering, users, since, moved) end
  if #confirmed > 0 then
    if not entering then
      call('ZADD', left, scored(at_text, confirmed))
    elseif keeps_repeats then
      remember_repeats(seen, before, at_text, confirmed)
    else
      -- No statement about this cohort had a time yet, so a time for each user is not needed.
      set('repeated', integer(math.max(at, newest_unrecorded or at)))
    end
  end
  if #fields > 0 then call('HSET', state, unpack(fields)) end
end

-- The request -------------------------------------------------------------------------------------

-- The users who are in a set, and those who are not.
local function split(set, users)
  local found = call('SMISMEMBER', set, unpack(users))
  local inside, outside = {}, {}
  for i = 1, #users do
    local side = found[i] == 1 and inside or outside
    side[#side + 1] = users[i]
  end
  return inside, outside
end

-- The users whose hashes are keys of a table.
local function only(wanted, users)
  local found = {}
  for i = 1, #users do
    if wanted[user_hash(users[i])] then found[#found + 1] = users[i] end
  end
  return found
end

local some_suppressed = call('EXISTS', base .. 'suppressed') == 1
local position = 9
while position <= #ARGV do
  local cohort, trait, value, stated_at, count = unpack(ARGV, position, position + 4)
  local final = position + 4 + count
  local users = {unpack(ARGV, position + 5, final)}
  if left_out_before then users = only(left_out_before, users) end
  if some_suppressed and #users > 0 then
    local inside
    inside, users = split(base .. 'suppressed', users)
    if #inside > 0 then report('suppressed', inside) end
  end
  if known_only and #users > 0 then
    local outside
    users, outside = split(base .. 'registered', users)
    if #outside > 0 then
      -- Those who are members entered when they were accepted; they stay members until they leave.
      local since = call('ZMSCORE', base .. 'cohort:' .. cohort .. ':members', unpack(outside))
      local others = {}
      for i = 1, #outside do
        local side = since[i] and users or others
        side[#side + 1] = outside[i]
      end
      outside = others
    end
    if #outside > 0 then
      report('unknown', outside)
      report('unknown in', {cohort, #outside})
    end
  end
  if #users > 0 or count == '0' then
    apply(cohort, trait, value, tonumber(stated_at), users)
  elseif mode == 'as known'
    and call('HGET', base .. 'cohort:' .. cohort .. ':state', 'trait') ~= trait
  then
    report('unmet', {cohort}) -- unknown or renamed: reported even if all its users are skipped
  end
  position = final + 1
end

if trim_stream then call('XTRIM', stream, 'MINID', '~', integer(now - max_age)) end

-- A request that is answered with an error will be sent again: it must not count as applied.
local failed = reported.conflicts or reported.deleting or reported.unmet
if message ~= '' and not failed then
  local left_out = {}
  for _, list in ipairs({reported.unknown or {}, reported.suppressed or {}}) do
    for _, user in ipairs(list) do left_out[#left_out + 1] = user_hash(user) end
  end
  call('SET', message_key, #left_out > 0 and cjson.encode(left_out) or 1, 'PX', HORIZON)
end

local reply = {0, count_only and change_count or changed}
for name, list in pairs(reported) do
  reply[#reply + 1] = name
  reply[#reply + 1] = list
end
return reply
