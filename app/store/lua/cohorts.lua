#!lua flags=no-writes
-- Read the records of some cohorts in one partition.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV     cohort ids
--
-- Returns for each: trait name, time of the last statement under that name, how many times it was
-- renamed, deletion in progress, rename in progress, number of members, and the documented fields of
-- its freshness hash, which only the cohort's home partition has: four of freshness, six of
-- completeness.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local call = redis.call
local rows = {}
for i = 1, #ARGV do
  local prefix = base .. 'cohort:' .. ARGV[i]
  local row = call('HMGET', prefix .. ':state', 'trait', 'named', 'renames', 'deleting',
    'moving')
  row[6] = call('ZCARD', prefix .. ':members')
  local fresh =
    call('HMGET', prefix .. ':freshness', 'last_received', 'cadence', 'cadence_source', 'late_after',
      'completeness', 'reasons', 'verified_at', 'verified_by', 'left_out', 'upstream')
  for k = 1, 10 do row[6 + k] = fresh[k] end
  rows[i] = row
end
return rows
