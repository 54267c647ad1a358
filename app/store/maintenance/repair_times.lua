#!lua
-- Correct times of a cohort that are ahead of the present: the store's clock was wrong, and has been
-- corrected since. What the times should be is unknown.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  how far ahead, in ms, the clock of another server may be
-- ARGV[3]  maximum number of users
--
-- Returns 1 if there may be more users to correct.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local cohort, skew = ARGV[1], tonumber(ARGV[2])
local prefix = base .. 'cohort:' .. cohort
local state, freshness, due = prefix .. ':state', prefix .. ':freshness', base .. 'due'
local call = redis.call

local function integer(value) return string.format('%d', value) end

local now = store_time[1] * 1000 + math.floor(store_time[2] / 1000) -- see connection/fence.py
local now_text, latest = integer(now), now + skew

-- There is no rollback: whatever can fail must fail before the first write.
expect('zset', prefix .. ':members', prefix .. ':left', due)
expect('hash', state, freshness)
local starts = cjson.decode(call('HGET', freshness, 'starts') or '[]')
local reasons = cjson.decode(call('HGET', freshness, 'reasons') or '[]')

-- The true times are unknown, and no later statement may count as older. So the last statements about
-- these users count as a day old, the age up to which the order of statements is kept.
local a_day_ago = integer(now - 24 * 3600 * 1000)
local more = 0
for _, set in ipairs({prefix .. ':members', prefix .. ':left'}) do
  local users = call('ZRANGE', set, '(' .. integer(latest), '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[3])
  for _, user in ipairs(users) do call('ZADD', set, a_day_ago, user) end
  if #users == tonumber(ARGV[3]) then more = 1 end
end

-- Times of arrivals: the present one, so that no cohort becomes late sooner than it should.
local function correct(key, field, text)
  local time = tonumber(call('HGET', key, field))
  if time and time > latest then call('HSET', key, field, text) end
end
for _, field in ipairs(call('HKEYS', state)) do
  if field == 'first' or field == 'last' or string.sub(field, 1, 7) == 'source:' then
    correct(state, field, now_text)
  end
end
correct(state, 'named', '0') -- unknown, so any name that arrives is newer
correct(state, 'repeated', '0')

local received, late =
  unpack(call('HMGET', freshness, 'last_received', 'late_after'))
received, late = tonumber(received), tonumber(late)
if received and received > latest then
  call('HSET', freshness, 'last_received', now_text)
  if late and late > received then
    late = integer(now + late - received)
    call('HSET', freshness, 'late_after', late)
    call('ZADD', due, 'XX', late, cohort)
  end
end
local kept = {}
for _, start in ipairs(starts) do
  if start <= latest then kept[#kept + 1] = start end
end
if #kept < #starts then
  if #kept > 0 then
    call('HSET', freshness, 'starts', cjson.encode(kept))
  else
    call('HDEL', freshness, 'starts')
  end
end
correct(freshness, 'verified_at', now_text)
correct(freshness, 'verified_from', now_text)
local changed = false
for _, open in ipairs(reasons) do
  for _, field in ipairs({'since', 'last'}) do
    if open[field] and open[field] > latest then
      open[field], changed = now, true
    end
  end
end
if changed then call('HSET', freshness, 'reasons', cjson.encode(reasons)) end
return more
