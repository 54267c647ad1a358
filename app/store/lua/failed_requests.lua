#!lua
-- Remember failed requests that may be retried, as many as there is room for.
--
-- KEYS[1]   the sorted set of the app's failed requests
-- ARGV[1]   requests to keep
-- ARGV[2]   ms to keep them after the last failure
-- ARGV[3..] pairs: time at which the last failed attempt began, in ms since the epoch; request
--
-- Returns 1.

local failed = KEYS[1]
local call = redis.call
local room = ARGV[1] - call('ZCARD', failed)
for i = 3, #ARGV, 2 do
  if room > 0 or call('ZSCORE', failed, ARGV[i + 1]) then
    room = room - call('ZADD', failed, 'GT', ARGV[i], ARGV[i + 1])
  end
end
call('PEXPIRE', failed, ARGV[2])
return 1
