#!lua flags=allow-oom
-- Remove change stream entries that are too old, some of them in each call. Requests remove them
-- too, but only whole blocks, and an app may have stopped sending.
--
-- Allowed when memory is full, as this frees memory.
--
-- KEYS[1]  the change stream, or a stream of entries that a consumer group gave up
-- ARGV[1]  age to keep, in ms
--
-- Returns 1 if there may be more to remove.

local stream = KEYS[1]
local call = redis.call

-- Maximum entries that one call removes in whole blocks.
local AT_ONCE = 1000

local clock = call('TIME')
local oldest = string.format('%d', clock[1] * 1000 + math.floor(clock[2] / 1000) - ARGV[1])

local removed = call('XTRIM', stream, 'MINID', '~', oldest, 'LIMIT', AT_ONCE)
local more = removed > 0
if not more then
  -- Old entries that are left share a block with younger ones, or their block has more than
  -- AT_ONCE entries.
  removed = call('XTRIM', stream, 'MINID', oldest)
end
if removed > 0 and call('XLEN', stream) == 0 then
  -- Readers who have not read all of it learn from this that they have missed something.
  local last = call('GET', stream .. ':last')
  if last then call('SET', stream .. ':begun', last) end
end
return more and 1 or 0
