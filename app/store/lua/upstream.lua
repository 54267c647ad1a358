#!lua
-- Record how polls of Amplitude's API went, and count exports.
--
-- KEYS[1]  the change stream of the app's home partition; the names of all other keys derive from it
-- ARGV[1]  action
--
-- polled   ARGV[2]: time in ms since the epoch; ARGV[3]: cohorts listed; ARGV[4]: cohorts that are
--          synced but never arrived; ARGV[5]: some of them, as JSON; ARGV[6]: cohorts whose sync is
--          overdue; ARGV[7]: ms to keep it
-- failed   ARGV[2]: time; ARGV[3]: reason; ARGV[4]: ms to keep it
-- spend    ARGV[2]: month; ARGV[3]: the most exports in it. Returns 1, or 0 if they are used up.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local status, exports = base .. 'upstream', base .. 'upstream-exports'
local call = redis.call

if ARGV[1] == 'polled' then
  call('HSET', status, 'polled', ARGV[2], 'listed', ARGV[3], 'total', ARGV[4], 'absent', ARGV[5],
    'behind', ARGV[6])
  call('HDEL', status, 'failed', 'failure')
  call('PEXPIRE', status, ARGV[7])
elseif ARGV[1] == 'failed' then
  call('HSET', status, 'failed', ARGV[2], 'failure', ARGV[3])
  call('PEXPIRE', status, ARGV[4])
else
  local KEPT = 62 * 24 * 3600 * 1000
  local spent = tonumber(call('HGET', exports, ARGV[2]) or 0)
  if spent >= tonumber(ARGV[3]) then return 0 end
  call('HINCRBY', exports, ARGV[2], 1)
  call('PEXPIRE', exports, KEPT)
  for _, month in ipairs(call('HKEYS', exports)) do
    if month < ARGV[2] then call('HDEL', exports, month) end
  end
end
return 1
