#!lua
-- Register users, so that USER_POLICY=known lets them in.
--
-- KEYS[1]  the partition's change stream; its name gives the other key
-- ARGV     user ids
--
-- Returns how many were new.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
return redis.call('SADD', base .. 'registered', unpack(ARGV))
