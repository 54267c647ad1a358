#!lua flags=no-writes
-- Read the numbers by which cohorts are sorted. The cohorts are read in order of their ids.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  'members', or 'last_received'
-- ARGV[2]  cohort id after which to start, or ''
-- ARGV[3]  maximum number of cohorts
--
-- Returns a flat list: cohort id, number, … The number of members is that of this partition; the
-- caller adds them up. The time of the last arrival, in ms since the epoch, is only in the cohort's
-- home partition, so the caller asks for it only if there is a single partition.

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
