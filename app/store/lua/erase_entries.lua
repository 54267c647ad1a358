#!lua flags=allow-oom
-- Remove entries about an erased user alone from the change stream.
--
-- They are counted in the same step. Who replays the stream can tell them so from entries that left
-- by age, which end what a replay can prove.
--
-- KEYS[1]  the partition's change stream; its name gives the other key
-- ARGV     ids of the entries
--
-- Returns how many were there.

local removed = redis.call('XDEL', KEYS[1], unpack(ARGV))
if removed > 0 then
  local base = string.sub(KEYS[1], 1, -#'changes' - 1)
  redis.call('HINCRBY', base .. 'erased', 'entries', removed)
end
return removed
