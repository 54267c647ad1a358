#!lua flags=allow-oom
-- Write something and remove it, so that waiting for replicas covers all that was written before.
--
-- KEYS[1]  a key that does not exist

redis.call('SET', KEYS[1], '')
redis.call('UNLINK', KEYS[1])
