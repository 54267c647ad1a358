#!lua flags=allow-oom
-- Remove change stream entries that contain no other user than an erased one, and count them.
--
-- The count lets a replay of the stream distinguish erased entries from trimmed ones: after
-- trimming, it cannot verify every member.
--
-- KEYS[1]  the partition's change stream, from which the name of the other key derives; or a
--          stream of entries that a consumer group gave up, which are not counted
-- ARGV     entry ids
--
-- Returns the number of entries removed.

local base = string.match(KEYS[1], '^(.*:)changes$')
if base then expect('hash', base .. 'erased') end
local removed = redis.call('XDEL', KEYS[1], unpack(ARGV))
if removed > 0 and base then
  redis.call('HINCRBY', base .. 'erased', 'entries', removed)
end
return removed
