#!lua
-- Record what is known about cohorts as a whole: when they arrived, and whether they are complete.
--
-- KEYS[1]   the change stream of the cohorts' home partition; the names of all other keys
--           derive from it
-- ARGV[1]   what to do, see below
-- ARGV[2]   what the action needs, or ''
-- ARGV[3]   a number that it needs, or ''
-- ARGV[4..] cohort ids
--
-- Freshness:
--   received  users of the cohorts arrived
--   known     list the cohorts as never received, unless they have been
--   set       use ARGV[3] as cadence, in ms
--   learn     compute the cadence from the last syncs again
-- Completeness, of cohorts that have arrived or are known; others are skipped:
--   verify    ARGV[2] confirmed the members, as of the time ARGV[3] in ms, or now if it is '': clear
--             older reasons and the users left out; after a resync or import, only those left out
--             before it. If ARGV[2] is 'upstream', do nothing while there are open reasons
--   raise     incomplete for the reason ARGV[2], after ARGV[3] more events
--   failed    incomplete because ARGV[3] requests failed, the last of which began at ARGV[2], in ms;
--             unless a resync, import or reconcile that began since has confirmed the members
--   clear     the reason ARGV[2] no longer applies
--   loss      mark what the store's last loss made incomplete
--   forgive   clear what losses of the store have marked
--   settle    clear 'sync_failed' if a later sync has ended without a failure
--   leave out ARGV[3] users were skipped for the reason ARGV[2]
-- Amplitude's own record, of the same cohorts:
--   upstream  store the record ARGV[2], a JSON object; '' to remove it. If its member anonymous, which
--             only an export reveals, is null, the last known one is kept, also after a removal
--   anonymous ARGV[3] users have no id, and ARGV[2] others are never members here
--   judge     store what follows from the record: ARGV[2], a JSON object. "holds": for how many ms
--             the record decides whether the cohort is late; "behind": since when its sync is
--             overdue, or null; "differs": identifies the last sync if the counts differ, or null
--
-- Nothing is written about a cohort that this partition does not know, or that is being deleted: a
-- deletion may have come between a request and this call, and must leave nothing behind.
--
-- Returns {for actions on freshness, the ids of cohorts that are unknown here; the id, the earlier and
-- the new state of each cohort whose completeness changed state}.
--
-- docs/data-model.md describes each cohort's freshness hash. These fields are private: 'starts', the
-- times at which the last syncs started; 'verified_from', when the resync, import or reconcile
-- that verified the cohort began; 'upstream_till', the time until which a judgement holds, and
-- 'upstream_behind' and 'count_differed', which it set; 'excluded', ARGV[2] of 'anonymous';
-- 'anonymous', the number of anonymous users in a record that was removed. These keys are private
-- as well:
--   due               sorted set: all cohorts by the time from which they are late; 0 if the cohort
--                     never arrived, +inf if neither its cadence nor Amplitude's record gives one
--   completeness:<x>  sorted sets: the cohorts in the state, or with the open reason, <x>, by when
--                     that began; those in state unverified are in no such set
--   transitions       stream: each change of a cohort's state or reasons, once
--   loss              hash: the last loss of the store; see mark.lua
--   deleted           sorted set: deleted cohorts, by the time of deletion; see delete.lua

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local action, given, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function integer(value) return string.format('%d', value) end

local function hash_of(cohort) return base .. 'cohort:' .. cohort .. ':freshness' end

local due = base .. 'due'
expect('zset', due)

-- A sync ends after a pause of this many ms. Amplitude waits a little over two minutes at most
-- before it retries.
local PAUSE = 5 * 60 * 1000

-- Completeness ------------------------------------------------------------------------------------

local replies = {}

-- A cohort's state and reasons, to be changed and passed to `save`.
local function completeness_of(cohort)
  local state, reasons = unpack(call('HMGET', hash_of(cohort), 'completeness', 'reasons'))
  return {
    cohort = cohort,
    state = state or 'unverified',
    reasons = reasons and cjson.decode(reasons) or {},
  }
end

-- Write a state and reasons, and record the transition from the former state.
local function save(current, state, raised, cleared)
  local TRANSITIONS_KEPT, KEPT_FOR = 1000, 7 * 24 * 3600 * 1000
  local cohort, key, former = current.cohort, hash_of(current.cohort), current.state
  call('HSET', key, 'completeness', state)
  if #current.reasons > 0 then
    call('HSET', key, 'reasons', cjson.encode(current.reasons))
  else
    call('HDEL', key, 'reasons')
  end
  if raised ~= '' then call('ZADD', base .. 'completeness:' .. raised, 'NX', now, cohort) end
  for _, reason in ipairs(cleared) do call('ZREM', base .. 'completeness:' .. reason, cohort) end
  if state ~= former then
    if former ~= 'unverified' then call('ZREM', base .. 'completeness:' .. former, cohort) end
    if state ~= 'unverified' then call('ZADD', base .. 'completeness:' .. state, now, cohort) end
    for _, item in ipairs({cohort, former, state}) do replies[#replies + 1] = item end
  end
  call('XADD', base .. 'transitions', 'MAXLEN', '~', TRANSITIONS_KEPT, '*', 'cohort', cohort,
    'from', former, 'to', state, 'raised', raised, 'cleared', table.concat(cleared, ','))
  call('PEXPIRE', base .. 'transitions', KEPT_FOR)
end

-- Make a cohort incomplete for a reason, after this many more events, the last one at this time.
local function raise(cohort, reason, events, at)
  local current = completeness_of(cohort)
  for _, open in ipairs(current.reasons) do
    if open.reason == reason then
      -- A time ahead of the present is from a clock that was wrong.
      open.count, open.last = open.count + events, math.min(math.max(open.last or 0, at), now)
      call('HSET', hash_of(cohort), 'reasons', cjson.encode(current.reasons))
      return
    end
  end
  current.reasons[#current.reasons + 1] = {reason = reason, since = now, last = at, count = events}
  save(current, 'incomplete', reason, {})
end

local function fail(cohort, requests, at)
  local replaced = tonumber(call('HGET', hash_of(cohort), 'verified_from') or 0)
  at = math.min(at, now)
  if at < replaced and replaced <= now then return end
  raise(cohort, 'sync_failed', requests, at)
end

local function clear(cohort, reason)
  local current = completeness_of(cohort)
  for i, open in ipairs(current.reasons) do
    if open.reason == reason then
      table.remove(current.reasons, i)
      save(current, #current.reasons > 0 and 'incomplete' or 'unverified', '', {reason})
      return
    end
  end
end

-- Forget the users who were left out, or only those before a resync or import that began at `since`.
local function forget_left_out(cohort, since)
  local key = hash_of(cohort)
  local before, started =
    unpack(call('HMGET', base .. 'cohort:' .. cohort .. ':resync', 'left_out', 'started'))
  if tonumber(started or 0) ~= since then before = nil end -- of an earlier resync
  local left_out = cjson.decode(before and call('HGET', key, 'left_out') or '{}')
  for reason, users in pairs(cjson.decode(before or '{}')) do
    local rest = (left_out[reason] or 0) - users
    left_out[reason] = rest > 0 and rest or nil
  end
  if next(left_out) then
    call('HSET', key, 'left_out', cjson.encode(left_out))
  else
    call('HDEL', key, 'left_out')
  end
end

-- Make a cohort incomplete because of the store's last loss, once, unless it was verified since.
local function raise_loss(cohort, loss_at, kind)
  local SAME_LOSS = 60 * 1000 -- as in mark.lua
  local current, reason = completeness_of(cohort), 'store_' .. kind
  local verified_at, verified_from =
    unpack(call('HMGET', hash_of(cohort), 'verified_at', 'verified_from'))
  verified_at = tonumber(verified_at or 0)
  if verified_at > now + PAUSE then verified_at = 0 end -- from a clock that was ahead
  if loss_at <= verified_at and loss_at < tonumber(verified_from or now) then return end
  for _, open in ipairs(current.reasons) do
    if open.reason == reason then
      local last = open.last or 0
      if loss_at > last then
        if loss_at - last > SAME_LOSS then open.count = open.count + 1 end
        open.last = loss_at
        call('HSET', hash_of(cohort), 'reasons', cjson.encode(current.reasons))
      end
      return
    end
  end
  current.reasons[#current.reasons + 1] = {reason = reason, since = now, count = 1, last = loss_at}
  save(current, 'incomplete', reason, {})
end

-- The store's last loss: time and kind; nil if there was none.
local function last_loss()
  local at, kind = unpack(call('HMGET', base .. 'loss', 'at', 'kind'))
  return at and tonumber(at), kind
end

-- The time of the last event of an open reason; 0 if it is from a clock that was ahead.
local function last_event(open)
  local at = open.last or open.since
  return at <= now + PAUSE and at or 0
end

local function verify(cohort, by, since)
  local current, key = completeness_of(cohort), hash_of(cohort)
  -- A count that matches does not prove that a gap is closed.
  if by == 'upstream' and #current.reasons > 0 then return end
  -- A suspended process may get here after another one has finished the resync.
  local started, stage =
    unpack(call('HMGET', base .. 'cohort:' .. cohort .. ':resync', 'started', 'state'))
  if stage == 'finished' and tonumber(started) == since then return end
  local cleared, rest = {}, {}
  for _, open in ipairs(current.reasons) do
    if since and last_event(open) >= since then
      rest[#rest + 1] = open
    else
      cleared[#cleared + 1] = open.reason
    end
  end
  current.reasons = rest
  -- What arrives from now on is the difference from the confirmed members.
  call('ZREM', base .. 'deleted', cohort)
  forget_left_out(cohort, since)
  call('HSET', key, 'verified_at', integer(now), 'verified_by', by)
  if since then
    call('HSET', key, 'verified_from', integer(since))
  else
    call('HDEL', key, 'verified_from')
  end
  if #cleared > 0 or (#rest == 0 and current.state ~= 'verified') then
    save(current, #rest > 0 and 'incomplete' or 'verified', '', cleared)
  end
end

local function leave_out(cohort, reason, users)
  local key = hash_of(cohort)
  local left_out = cjson.decode(call('HGET', key, 'left_out') or '{}')
  left_out[reason] = (left_out[reason] or 0) + users
  call('HSET', key, 'left_out', cjson.encode(left_out))
end

-- Clear 'sync_failed' if a sync began after the last failure, and has ended. Within one pause of the
-- failure, what arrives may be the rest of the same sync.
local function settle(cohort)
  local starts, last = unpack(call('HMGET', hash_of(cohort), 'starts', 'last_received'))
  local reasons = completeness_of(cohort).reasons
  for _, open in ipairs(reasons) do
    if open.reason == 'sync_failed' then
      local failed = last_event(open)
      if failed == 0 then -- it was before now, but it is unknown when
        open.last = now
        call('HSET', hash_of(cohort), 'reasons', cjson.encode(reasons))
        return
      end
      local later = 0
      for _, start in ipairs(starts and cjson.decode(starts) or {}) do
        if start > failed + PAUSE then later = later + 1 end
      end
      if later > 1 or (later == 1 and now - last > PAUSE) then clear(cohort, 'sync_failed') end
      return
    end
  end
end

-- Freshness ---------------------------------------------------------------------------------------

local STARTS_KEPT = 9
-- A cohort is late one cadence plus a grace period after it last arrived. The grace period is half a
-- cadence, but at least this many ms.
local GRACE = 5 * 60 * 1000

-- Record when a cohort becomes late. While Amplitude's record is recent, it decides: a cohort in
-- which nothing changes does not arrive, and is not late.
--   last, cadence    when it was last received, and how often it should be; nil if unknown
--   till, behind     until when the judgement holds, and since when the sync is overdue; or false
local function note_lateness(cohort, last, cadence, till, behind)
  local late = last and cadence and last + cadence + math.max(cadence / 2, GRACE)
  till = tonumber(till or 0)
  if last and now <= till then
    if behind then late = tonumber(behind) elseif late then late = math.max(late, till) end
  end
  if late then
    call('HSET', hash_of(cohort), 'late_after', integer(late))
    call('ZADD', due, integer(late), cohort)
  else
    call('HDEL', hash_of(cohort), 'late_after')
    call('ZADD', due, last and '+inf' or 0, cohort)
  end
end

-- The median interval between the last syncs, so that one sync that was split or skipped has no
-- effect; nil for fewer than two intervals.
local function learned(starts)
  local intervals = {}
  for i = 2, #starts do intervals[i - 1] = starts[i] - starts[i - 1] end
  if #intervals < 2 then return nil end
  table.sort(intervals)
  return intervals[math.ceil(#intervals / 2)]
end

-- Whatever arrives is the difference from what was sent before. Mark a cohort if the data that was
-- sent before is no longer here.
local function note_gaps(cohort, last)
  if not last and call('ZSCORE', base .. 'deleted', cohort) then
    call('ZREM', base .. 'deleted', cohort)
    raise(cohort, 'deleted_here', 1, now)
  end
  local loss_at, kind = last_loss()
  if loss_at and (not last or last < loss_at) then raise_loss(cohort, loss_at, kind) end
end

local function note_freshness(cohort)
  local key = hash_of(cohort)
  local last, cadence, source, starts, till, behind = unpack(call('HMGET', key,
    'last_received', 'cadence', 'cadence_source', 'starts', 'upstream_till', 'upstream_behind'))
  local before = cadence
  last, cadence, starts = tonumber(last), tonumber(cadence), starts and cjson.decode(starts) or {}
  if action == 'received' then
    note_gaps(cohort, last)
    -- Times ahead of the present are from a clock that was wrong.
    while starts[#starts] and starts[#starts] > now + PAUSE do table.remove(starts) end
    if not last or math.abs(now - last) > PAUSE then
      starts[#starts + 1] = now
      if #starts > STARTS_KEPT then table.remove(starts, 1) end
      call('HSET', key, 'starts', cjson.encode(starts))
      if source ~= 'set' then cadence, source = learned(starts), 'learned' end
    end
    last = now
    call('HSET', key, 'last_received', integer(now))
  elseif action == 'set' then
    cadence, source = number, 'set'
  else
    cadence, source = learned(starts), 'learned'
  end
  if cadence then
    if integer(cadence) ~= before or action ~= 'received' then
      call('HSET', key, 'cadence', integer(cadence), 'cadence_source', source)
    end
  elseif before then
    call('HDEL', key, 'cadence', 'cadence_source')
  end
  note_lateness(cohort, last, cadence, till, behind)
end

-- Upstream ----------------------------------------------------------------------------------------

local function note_upstream(cohort, record)
  local key = hash_of(cohort)
  local former, kept = unpack(call('HMGET', key, 'upstream', 'anonymous'))
  -- The member may be null in JSON, which is true in Lua.
  local anonymous = tonumber(former and cjson.decode(former).anonymous) or tonumber(kept)
  if record == '' then
    if anonymous then call('HSET', key, 'anonymous', integer(anonymous)) end
    call('HDEL', key, 'upstream')
    return
  end
  local current = cjson.decode(record)
  if anonymous and current.anonymous == cjson.null then current.anonymous = anonymous end
  call('HSET', key, 'upstream', cjson.encode(current))
end

local function note_anonymous(cohort, excluded, anonymous)
  local key = hash_of(cohort)
  local record = cjson.decode(call('HGET', key, 'upstream') or '{}')
  record.anonymous = anonymous
  call('HSET', key, 'upstream', cjson.encode(record), 'excluded', excluded)
end

local function judge(cohort, verdict)
  local key = hash_of(cohort)
  verdict = cjson.decode(verdict)
  local fields = {upstream_behind = verdict.behind, count_differed = verdict.differs}
  if verdict.holds > 0 then fields.upstream_till = now + verdict.holds end
  for _, name in ipairs({'upstream_till', 'upstream_behind', 'count_differed'}) do
    local value = fields[name]
    if value == nil or value == cjson.null then
      call('HDEL', key, name)
    else
      call('HSET', key, name, type(value) == 'number' and integer(value) or value)
    end
  end
  local last, cadence, till, behind =
    unpack(call('HMGET', key, 'last_received', 'cadence', 'upstream_till', 'upstream_behind'))
  note_lateness(cohort, tonumber(last), tonumber(cadence), till, behind)
end

-- Actions that skip cohorts which never arrived and are not known.
local FOR_KNOWN = {
  settle = settle,
  verify = function(cohort) verify(cohort, given, number) end,
  raise = function(cohort) raise(cohort, given, number, now) end,
  failed = function(cohort) fail(cohort, number, tonumber(given)) end,
  clear = function(cohort) clear(cohort, given) end,
  loss = function(cohort)
    local loss_at, kind = last_loss()
    if loss_at then raise_loss(cohort, loss_at, kind) end
  end,
  forgive = function(cohort)
    clear(cohort, 'store_lost')
    clear(cohort, 'store_set_back')
  end,
  ['leave out'] = function(cohort) leave_out(cohort, given, number) end,
  upstream = function(cohort) note_upstream(cohort, given) end,
  anonymous = function(cohort) note_anonymous(cohort, given, number) end,
  judge = function(cohort) judge(cohort, given) end,
}

local unknown = {}
for i = 4, #ARGV do
  local cohort = ARGV[i]
  local trait, deleting = unpack(call('HMGET', base .. 'cohort:' .. cohort .. ':state',
    'trait', 'deleting'))
  if not trait and not deleting and not FOR_KNOWN[action] then
    unknown[#unknown + 1] = cohort
  elseif deleting then
    -- its records are about to be removed
  elseif action == 'known' then
    call('ZADD', due, 'NX', 0, cohort)
  elseif not FOR_KNOWN[action] then
    note_freshness(cohort)
  elseif call('ZSCORE', due, cohort) then
    FOR_KNOWN[action](cohort)
  end
end
return {unknown, replies}
