#!lua
-- Add requests to an app's sync history. history_trim.lua lets go of what is too old or too much.
--
-- KEYS[1]   the sorted set of the app's syncs; its name gives the other keys
-- ARGV[1]   requests to keep
-- ARGV[2]   a name for what this call brings; it is added once
-- ARGV[3..] batches of requests: head, number of clean requests, number of others, and each
--           request as a JSON array. The head is a JSON object:
--             key     what the requests have in common; requests with the same key that are close
--                     in time are one sync
--             cohort  cohort id, or ''
--             index   'syncs', or 'failures' for those that name no cohort
--             first, last  the times of the batch's first and last request, ms since the epoch
--             set     fields of the sync's hash to set
--             add     fields of the sync's hash to add to
--             slowest ms
--
-- Failed requests that name no cohort are kept apart from the others, and a tenth of them: however
-- many there are, the others stay.

local base = string.sub(KEYS[1], 1, -#'syncs' - 1)
local call = redis.call

-- A sync ends when nothing came for this long, in ms; so does one that goes on and on.
local PAUSE, LONGEST = 5 * 60 * 1000, 6 * 3600 * 1000
-- Of the requests that are kept, those of one sync may be one in so many.
local SHARE = 10

local per_sync = math.max(100, math.floor(tonumber(ARGV[1]) / SHARE))

local book, open = base .. 'history', base .. 'open'

-- For how long a call that is repeated is recognised, in ms.
local REPEATED = 10 * 60 * 1000
if not call('SET', base .. 'added:' .. ARGV[2], 1, 'NX', 'PX', REPEATED) then return 0 end

local function number(value) return string.format('%d', value) end

local function sync_key(id) return base .. 'sync:' .. id end

local function of_cohort(cohort) return base .. 'cohort:' .. cohort .. ':syncs' end

-- The sync that a batch belongs to: the one that is open, or a new one.
local function find(batch)
  local id = call('HGET', open, batch.key)
  local late = false
  if id then
    local began, last = unpack(call('HMGET', sync_key(id), 'began', 'last'))
    if last then
      began, last = tonumber(began), tonumber(last)
      late = batch.last < began - PAUSE
      if not late and batch.first - last <= PAUSE and batch.last - began <= LONGEST then
        return id, began, last
      end
    end
  end
  id = number(call('HINCRBY', book, 'next', 1))
  call('ZADD', base .. batch.index, id, id)
  call('HSET', sync_key(id), 'key', batch.key, 'cohort', batch.cohort)
  if batch.cohort ~= '' then call('ZADD', of_cohort(batch.cohort), id, id) end
  if not late then call('HSET', open, batch.key, id) end
  return id, math.huge, 0
end

-- Append to one of a sync's lists, and keep its newest.
local function keep(list, index, first, count)
  if count == 0 then return end
  local length = call('RPUSH', list, unpack(ARGV, first, first + count - 1))
  if length > per_sync then
    call('LTRIM', list, -per_sync, -1)
    count = count - (length - per_sync)
  end
  call('HINCRBY', book, index, number(count))
end

local function add(batch, clean, others, position)
  local id, began, last = find(batch)
  local sync = sync_key(id)
  call('HSET', sync, 'began', number(math.min(began, batch.first)),
    'last', number(math.max(last, batch.last)))
  for field, value in pairs(batch.set) do call('HSET', sync, field, value) end
  for field, value in pairs(batch.add) do call('HINCRBY', sync, field, number(value)) end
  local slowest = tonumber(call('HGET', sync, 'slowest') or 0)
  if batch.slowest > slowest then call('HSET', sync, 'slowest', tostring(batch.slowest)) end
  keep(sync .. ':requests', batch.index, position, clean)
  keep(sync .. ':problems', batch.index, position + clean, others)
  if others > 0 then call('ZADD', base .. 'problems', id, id) end
end

local position = 3
while position <= #ARGV do
  local batch = cjson.decode(ARGV[position])
  local clean, others = tonumber(ARGV[position + 1]), tonumber(ARGV[position + 2])
  add(batch, clean, others, position + 3)
  position = position + 3 + clean + others
end
return 1
