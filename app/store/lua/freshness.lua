#!lua
-- Note that cohorts arrived, or set how often they should.
--
-- KEYS[1]   the change stream of the cohorts' home partition; its name gives the other keys
-- ARGV[1]   'received': users of them came in; 'known': they exist; 'set': ARGV[2] is the cadence
--           in ms; 'learn': find the cadence out again
-- ARGV[2]   cadence in ms, or ''
-- ARGV[3..] cohort ids
--
-- docs/data-model.md describes the hash that this keeps for each cohort. Its field 'starts' is
-- private: the starts of the last syncs. So is the sorted set 'due', of all cohorts by when they
-- will be late: 0 for those that never arrived, +inf where that can't be told.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local action, given = ARGV[1], ARGV[2]
local call = redis.call

-- A sync ends when nothing came for this long, in ms. Amplitude's longest pause before a retry is
-- a little over two minutes.
local PAUSE = 5 * 60 * 1000
local STARTS_KEPT = 9
-- A cohort is late after half a cadence more than one, or this many ms more.
local GRACE = 5 * 60 * 1000

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function number(value) return string.format('%d', value) end

-- The middle of the times between the last starts: one sync that was cut in two, or left out,
-- doesn't change it. Two such times at least.
local function learned(starts)
  local between = {}
  for i = 2, #starts do between[i - 1] = starts[i] - starts[i - 1] end
  if #between < 2 then return nil end
  table.sort(between)
  return between[math.ceil(#between / 2)]
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
      call('HSET', key, 'last_received', number(now))
    elseif action == 'set' then
      cadence, source = tonumber(given), 'set'
    else
      cadence, source = learned(starts), 'learned'
    end
    if cadence then
      if number(cadence) ~= before or action ~= 'received' then
        call('HSET', key, 'cadence', number(cadence), 'cadence_source', source)
      end
    elseif before then
      call('HDEL', key, 'cadence', 'cadence_source', 'late_after')
    end
    if last and cadence then
      local late = number(last + cadence + math.max(cadence / 2, GRACE))
      call('HSET', key, 'late_after', late)
      call('ZADD', due, late, cohort)
    else
      call('ZADD', due, last and '+inf' or 0, cohort)
    end
  end
end
return 1
