#!lua flags=allow-oom
-- Remove users from the set of registered or of suppressed users.
--
-- KEYS[1]   the partition's change stream; its name gives the other key
-- ARGV[1]   'registered' or 'suppressed'
-- ARGV[2..] user ids
--
-- Returns how many were removed.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
return redis.call('SREM', base .. ARGV[1], unpack(ARGV, 2))
