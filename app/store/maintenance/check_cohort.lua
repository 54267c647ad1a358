#!lua flags=no-writes
-- Find problems in a cohort's records in one partition.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
--
-- Returns a flat list: problem, detail, problem, detail …

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local cohort = ARGV[1]
local prefix = base .. 'cohort:' .. cohort
local state = prefix .. ':state'
local call = redis.call

local trait, entered, left, moving, deleting =
  unpack(call('HMGET', state, 'trait', 'entered', 'left', 'moving', 'deleting'))
local members = call('ZCARD', prefix .. ':members')
local others = call('EXISTS', state, prefix .. ':left', prefix .. ':seen', prefix .. ':seen-before')
local listed = call('ZSCORE', base .. 'cohorts', cohort)
local job = call('SISMEMBER', base .. 'jobs', cohort) == 1

local found = {}
local function problem(name, detail)
  found[#found + 1] = name
  found[#found + 1] = detail
end

-- While a cohort is deleted, a partition that has none of its users has the mark, but no trait.
if not trait and (members > 0 or listed or (others > 0 and not deleting)) then
  problem('cohort_without_state', members .. ' members')
end
if not trait and not deleting and not listed and members + others == 0
  and (call('ZSCORE', base .. 'due', cohort)
    or call('EXISTS', prefix .. ':freshness', prefix .. ':sizes') > 0)
then
  problem('records_without_cohort', '')
end
if trait and not listed then problem('cohort_not_listed', '') end
if trait and (entered or 0) - (left or 0) ~= members then
  problem('wrong_counters',
    (entered or 0) .. ' entered, ' .. (left or 0) .. ' left, ' .. members .. ' members')
end
if job and not (moving or deleting) then problem('job_without_work', '') end
if not job and (moving or deleting) then
  problem('work_without_job', deleting and 'deletion' or 'rename')
end
return found
