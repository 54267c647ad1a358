#!lua flags=allow-oom
-- Remove the oldest syncs of an app if its history is too old or too large, some of them in each
-- call.
--
-- KEYS[1]   the sorted set of the app's syncs; the names of all other keys derive from it
-- ARGV[1]   requests to keep
-- ARGV[2]   syncs to keep
-- ARGV[3]   age to keep, in ms
-- ARGV[4]   the present time, in ms since the epoch; '' for the server's
--
-- Returns 1 if there may be more to remove.

local base = string.sub(KEYS[1], 1, -#'syncs' - 1)
local call = redis.call

-- Maximum syncs of each kind that one call removes.
local AT_ONCE = 50

local max_requests, max_syncs = tonumber(ARGV[1]), tonumber(ARGV[2])
local max_age = tonumber(ARGV[3])
local totals, open = base .. 'history', base .. 'open'
local clock = call('TIME')
local now = tonumber(ARGV[4]) or clock[1] * 1000 + math.floor(clock[2] / 1000)
-- A time further ahead is from a clock that was wrong. In ms.
local SKEW = 5 * 60 * 1000

local function remove(id, index)
  local sync = base .. 'sync:' .. id
  local cohort, key = unpack(call('HMGET', sync, 'cohort', 'key'))
  local gone = call('LLEN', sync .. ':requests') + call('LLEN', sync .. ':problems')
  call('UNLINK', sync, sync .. ':requests', sync .. ':problems', sync .. ':left-out')
  call('ZREM', base .. 'left-out', id)
  call('ZREM', base .. index, id)
  call('ZREM', base .. 'problems', id)
  call('HINCRBY', totals, index, string.format('%d', -gone))
  if cohort and cohort ~= '' then call('ZREM', base .. 'cohort:' .. cohort .. ':syncs', id) end
  if key and call('HGET', open, key) == id then call('HDEL', open, key) end
end

local function trim(index, requests, syncs)
  for _ = 1, AT_ONCE do
    local id = call('ZRANGE', base .. index, 0, 0)[1]
    if not id then return false end
    local last = tonumber(call('HGET', base .. 'sync:' .. id, 'last') or 0)
    if last > now + SKEW then
      -- Without this, it would never be too old, and no later sync could be removed.
      last = now
      call('HSET', base .. 'sync:' .. id, 'last', string.format('%d', now))
    end
    if last > now - max_age
      and tonumber(call('HGET', totals, index) or 0) <= requests
      and call('ZCARD', base .. index) <= syncs
    then
      return false
    end
    remove(id, index)
  end
  return true
end

local more = trim('syncs', max_requests, max_syncs)
local failures, failed_syncs = math.max(100, max_requests / 10), math.max(100, max_syncs / 10)
return (trim('failures', failures, failed_syncs) or more) and 1 or 0
