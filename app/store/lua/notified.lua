#!lua flags=allow-oom
-- Record what a notification was sent about, so that it is sent once.
--
-- KEYS[1]   the partition's change stream; the names of all other keys derive from it
-- ARGV[1]   'transitions': up to the entry ARGV[2] of the stream of transitions
--           'sent': ARGV[2] is '<last entry> <notifications sent>' of the current batch of
--           transitions; ARGV[3] is its first entry
--           'late': the cohorts ARGV[2..] are late; 'arriving', 'gone': they are no longer
--           'loss': the app's loss that was found at ARGV[2], in ms
--
-- Returns 1.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local call = redis.call

if ARGV[1] == 'late' then
  call('SADD', base .. 'notified:late', unpack(ARGV, 2))
elseif ARGV[1] == 'arriving' or ARGV[1] == 'gone' then
  call('SREM', base .. 'notified:late', unpack(ARGV, 2))
else
  call('HSET', base .. 'notified', ARGV[1], ARGV[2])
  if ARGV[1] == 'sent' then call('HSET', base .. 'notified', 'first', ARGV[3]) end
  if ARGV[1] == 'transitions' then call('HDEL', base .. 'notified', 'sent', 'first') end
end
return 1
