#!lua flags=allow-oom
-- Acquire or renew a lease.
--
-- Allowed when memory is full, as a deletion, which frees memory, needs one.
--
-- KEYS[1]  the lease
-- ARGV[1]  id of the owner
-- ARGV[2]  duration in ms
--
-- Returns 1, or 0 if the lease has another owner.

local owner = redis.call('GET', KEYS[1])
-- A lease with more than twice this duration left was taken while the server's clock was ahead: it
-- does not count.
if owner and owner ~= ARGV[1] and redis.call('PTTL', KEYS[1]) <= 2 * ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
