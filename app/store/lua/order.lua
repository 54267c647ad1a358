#!lua flags=no-writes
-- Read what cohorts are sorted by, as far as one partition knows it; in the order of their ids.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV[1]  'members', or 'last_received'
-- ARGV[2]  the id after which to begin, or ''
-- ARGV[3]  cohorts to read at most
--
-- Returns cohort id and number, over and over: members in this partition, which add up; or when it
-- was last received, in ms since the epoch, where there is only one partition.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local call = redis.call
local start = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local ids = call('ZRANGE', base .. 'cohorts', start, '+', 'BYLEX', 'LIMIT', 0, ARGV[3])
local by_members = ARGV[1] == 'members'
local found = {}
for i = 1, #ids do
  local cohort = base .. 'cohort:' .. ids[i]
  found[2 * i - 1] = ids[i]
  if by_members then
    found[2 * i] = call('ZCARD', cohort .. ':members')
  else
    found[2 * i] = tonumber(call('HGET', cohort .. ':freshness', 'last_received') or 0)
  end
end
return found
