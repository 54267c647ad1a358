#!lua
-- Record that cohorts arrived, or set how often they are expected.
--
-- KEYS[1]   the change stream of the cohorts' home partition; the names of all other keys
--           derive from it
-- ARGV[1]   'received': users of the cohorts arrived; 'known': the cohorts exist; 'set': use
--           ARGV[2] as cadence; 'learn': compute the cadence from the last syncs again
-- ARGV[2]   cadence in ms, or ''
-- ARGV[3..] cohort ids
--
-- docs/data-model.md describes each cohort's freshness hash. Its field 'starts', the times at which
-- the last syncs started, is private. So is the sorted set 'due': all cohorts by the time from
-- which they are late; 0 if the cohort never arrived, +inf if its cadence is unknown.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local action, given = ARGV[1], ARGV[2]
local call = redis.call

-- A sync ends after a pause of this many ms. Amplitude waits a little over two minutes at most
-- before it retries.
local PAUSE = 5 * 60 * 1000
local STARTS_KEPT = 9
-- A cohort is late one cadence plus a grace period after it last arrived: half a cadence, and at
-- least this many ms.
local GRACE = 5 * 60 * 1000

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function integer(value) return string.format('%d', value) end

-- The median interval between the last syncs, which one sync that was split or skipped does not
-- affect; nil for fewer than two intervals.
local function learned(starts)
  local intervals = {}
  for i = 2, #starts do intervals[i - 1] = starts[i] - starts[i - 1] end
  if #intervals < 2 then return nil end
  table.sort(intervals)
  return intervals[math.ceil(#intervals / 2)]
end

for i = 3, #ARGV do
  local cohort = ARGV[i]
  local key, due = base .. 'cohort:' .. cohort .. ':freshness', base .. 'due'
  if action == 'known' then
    call('ZADD', due, 'NX', 0, cohort)
  else
    local last, cadence, source, starts =
      unpack(call('HMGET', key, 'last_received', 'cadence', 'cadence_source', 'starts'))
    local before = cadence
    last, cadence, starts = tonumber(last), tonumber(cadence), starts and cjson.decode(starts) or {}
    if action == 'received' then
      if not last or now - last > PAUSE then
        starts[#starts + 1] = now
        if #starts > STARTS_KEPT then table.remove(starts, 1) end
        call('HSET', key, 'starts', cjson.encode(starts))
        if source ~= 'set' then cadence, source = learned(starts), 'learned' end
      end
      last = now
      call('HSET', key, 'last_received', integer(now))
    elseif action == 'set' then
      cadence, source = tonumber(given), 'set'
    else
      cadence, source = learned(starts), 'learned'
    end
    if cadence then
      if integer(cadence) ~= before or action ~= 'received' then
        call('HSET', key, 'cadence', integer(cadence), 'cadence_source', source)
      end
    elseif before then
      call('HDEL', key, 'cadence', 'cadence_source', 'late_after')
    end
    if last and cadence then
      local late = integer(last + cadence + math.max(cadence / 2, GRACE))
      call('HSET', key, 'late_after', late)
      call('ZADD', due, late, cohort)
    else
      call('ZADD', due, last and '+inf' or 0, cohort)
    end
  end
end
return 1
