#!lua flags=allow-oom
-- Revoke a key, for good: the first time stays. A leaked key can be revoked where memory is full too.
--
-- KEYS[1]  the hash of all keys
-- ARGV[1]  the field that says when it was revoked
-- ARGV[2]  now, in ms since the epoch

return redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
