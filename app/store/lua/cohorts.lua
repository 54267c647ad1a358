#!lua flags=no-writes
-- Read what a list of cohorts tells of each, as far as one partition knows it.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     cohort ids
--
-- Returns for each: trait name, when it was named so, work in progress (being deleted, being
-- moved), members; then, from its home partition, the fields of its freshness that are a contract.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local call = redis.call
local rows = {}
for i = 1, #ARGV do
  local prefix = base .. 'cohort:' .. ARGV[i]
  local row = call('HMGET', prefix .. ':state', 'trait', 'named', 'deleting', 'moving')
  row[5] = call('ZCARD', prefix .. ':members')
  local fresh =
    call('HMGET', prefix .. ':freshness', 'last_received', 'cadence', 'cadence_source', 'late_after')
  for k = 1, 4 do row[5 + k] = fresh[k] end
  rows[i] = row
end
return rows
