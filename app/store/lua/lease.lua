#!lua flags=allow-oom
-- Take a lease, or keep it for longer.
--
-- It works where memory is full too: so does a deletion, which makes room.
--
-- KEYS[1]  the lease
-- ARGV[1]  who takes it
-- ARGV[2]  for how long, in ms
--
-- Returns 1; 0 where somebody else has it.

local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
