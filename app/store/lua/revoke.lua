#!lua flags=allow-oom
-- Revoke an API key permanently. Repeated calls keep the time of the first one.
--
-- Allowed when memory is full, so that a leaked key can always be revoked.
--
-- KEYS[1]  the hash of all keys
-- ARGV[1]  field for the key's time of revocation
-- ARGV[2]  time in ms since the epoch
--
-- Returns 1, or 0 if the key had been revoked before.

return redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
