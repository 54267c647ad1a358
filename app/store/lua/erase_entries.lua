#!lua flags=allow-oom
-- Remove change stream entries that contain no other user than an erased one, and count them.
--
-- The count lets a replay of the stream distinguish erased entries from trimmed ones, before which
-- it can't verify anything.
--
-- KEYS[1]  the partition's change stream; the name of the other key derives from it
-- ARGV     entry ids
--
-- Returns the number of entries removed.

local removed = redis.call('XDEL', KEYS[1], unpack(ARGV))
if removed > 0 then
  local base = string.sub(KEYS[1], 1, -#'changes' - 1)
  redis.call('HINCRBY', base .. 'erased', 'entries', removed)
end
return removed
