#!lua
-- Add requests to an app's sync history. history_trim.lua enforces its limits of age and size.
--
-- KEYS[1]   the sorted set of the app's syncs; the names of all other keys derive from it
-- ARGV[1]   requests to keep
-- ARGV[2]   id of this call: repeating it adds nothing
-- ARGV[3]   how many left-out users to keep for each sync
-- ARGV[4..] batches: head, number of requests without a problem, number of requests with one, and
--           each request as a JSON array. The head is a JSON object:
--             key     groups requests: those with the same key that are close in time form a sync
--             cohort  cohort id, or ''
--             index   'syncs', or 'failures' for requests that name no cohort, most of which failed
--             now     the present time, in ms since the epoch
--             first, last  times of the first and last request, in ms since the epoch
--             set     fields of the sync's hash to set
--             add     fields of the sync's hash to increment
--             left_out  users who were left out: hash, id, hash, id, …
--             slowest longest request, in ms
--
-- Requests that name no cohort have their own, smaller space, so that a flood of them does not push
-- out the others.

local base = string.sub(KEYS[1], 1, -#'syncs' - 1)
local call = redis.call

-- A sync ends after a pause of this many ms, or when it reaches the longest duration.
local PAUSE, LONGEST = 5 * 60 * 1000, 6 * 3600 * 1000
-- Each list of a sync keeps the limit of the app's requests divided by this, but at least 100.
local SHARE = 10

local per_sync = math.max(100, math.floor(tonumber(ARGV[1]) / SHARE))

local totals, open = base .. 'history', base .. 'open'

-- How long a repeated call is recognised, in ms.
local REPEATED = 10 * 60 * 1000
local added = base .. 'added:' .. ARGV[2]
if call('EXISTS', added) == 1 then return 0 end

local function integer(value) return string.format('%d', value) end

local function sync_key(id) return base .. 'sync:' .. id end

local function of_cohort(cohort) return base .. 'cohort:' .. cohort .. ':syncs' end

-- The sync that a batch belongs to: the open one or a new one. Returns its id, start and end.
local function find(batch)
  local id = call('HGET', open, batch.key)
  local late = false
  if id then
    local began, last = unpack(call('HMGET', sync_key(id), 'began', 'last'))
    if last then
      began, last = tonumber(began), tonumber(last)
      -- A time ahead of the present is from a clock that was wrong: no request continues that sync.
      local wrong = last > batch.now + PAUSE
      late = not wrong and batch.last < began - PAUSE
      if not wrong and not late and batch.first - last <= PAUSE and batch.last - began <= LONGEST then
        return id, began, last
      end
    end
  end
  id = integer(call('HINCRBY', totals, 'next', 1))
  call('ZADD', base .. batch.index, id, id)
  call('HSET', sync_key(id), 'key', batch.key, 'cohort', batch.cohort)
  if batch.cohort ~= '' then call('ZADD', of_cohort(batch.cohort), id, id) end
  if not late then call('HSET', open, batch.key, id) end
  return id, math.huge, 0
end

-- Append to a list of a sync, and drop its oldest entries if it is full.
local function keep(list, index, first, count)
  if count == 0 then return end
  local length = call('RPUSH', list, unpack(ARGV, first, first + count - 1))
  if length > per_sync then
    call('LTRIM', list, -per_sync, -1)
    count = count - (length - per_sync)
  end
  call('HINCRBY', totals, index, integer(count))
end

-- Keep the ids of users who were left out, for the latest syncs with such users.
local function keep_left_out(id, users)
  local KEPT_FOR, SYNCS = 7 * 24 * 3600 * 1000, 100
  local key, index, most = sync_key(id) .. ':left-out', base .. 'left-out', tonumber(ARGV[3])
  if most == 0 or #users == 0 then return end
  local kept = call('HLEN', key)
  for i = 1, #users, 2 do
    if kept >= most then break end
    kept = kept + call('HSET', key, users[i], users[i + 1])
  end
  call('PEXPIRE', key, KEPT_FOR)
  call('ZADD', index, id, id)
  call('PEXPIRE', index, KEPT_FOR)
  for _ = SYNCS + 1, call('ZCARD', index) do
    local oldest = call('ZRANGE', index, 0, 0)[1]
    call('UNLINK', sync_key(oldest) .. ':left-out')
    call('ZREM', index, oldest)
  end
end

local function add(batch, clean, others, position)
  local id, began, last = find(batch)
  local sync = sync_key(id)
  call('HSET', sync, 'began', integer(math.min(began, batch.first)),
    'last', integer(math.max(last, batch.last)))
  for field, value in pairs(batch.set) do call('HSET', sync, field, value) end
  for field, value in pairs(batch.add) do call('HINCRBY', sync, field, integer(value)) end
  local slowest = tonumber(call('HGET', sync, 'slowest') or 0)
  if batch.slowest > slowest then call('HSET', sync, 'slowest', tostring(batch.slowest)) end
  keep(sync .. ':requests', batch.index, position, clean)
  keep(sync .. ':problems', batch.index, position + clean, others)
  if others > 0 then call('ZADD', base .. 'problems', id, id) end
  keep_left_out(id, batch.left_out or {})
end

-- There is no rollback: whatever can fail must fail before the first write.

local batches = {}
local position = 4
while position <= #ARGV do
  local batch = cjson.decode(ARGV[position])
  batch.clean, batch.others = tonumber(ARGV[position + 1]), tonumber(ARGV[position + 2])
  batch.position = position + 3
  batches[#batches + 1] = batch
  position = batch.position + batch.clean + batch.others
end

expect('hash', totals, open)
expect('zset', base .. 'problems', base .. 'left-out')
local function expect_sync(id)
  expect('hash', sync_key(id), sync_key(id) .. ':left-out')
  expect('list', sync_key(id) .. ':requests', sync_key(id) .. ':problems')
end
local last_id = tonumber(call('HGET', totals, 'next') or 0)
for number, batch in ipairs(batches) do
  expect('zset', base .. batch.index)
  if batch.cohort ~= '' then expect('zset', of_cohort(batch.cohort)) end
  local id = call('HGET', open, batch.key)
  if id then expect_sync(id) end
  expect_sync(integer(last_id + number))
end

call('SET', added, 1, 'PX', REPEATED)
for _, batch in ipairs(batches) do add(batch, batch.clean, batch.others, batch.position) end
return 1
