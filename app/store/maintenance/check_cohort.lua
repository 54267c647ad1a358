#!lua flags=no-writes
-- Find problems in a cohort's records in one partition.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  how far ahead, in ms, the clock of another server may be
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

-- Times ahead of the present are from a clock that was wrong; repair_times.lua corrects them.
local clock = call('TIME')
local latest = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[2])
local ahead = {}
for _, part in ipairs({'members', 'left'}) do
  local users = call('ZCOUNT', prefix .. ':' .. part, '(' .. string.format('%d', latest), '+inf')
  if users > 0 then ahead[#ahead + 1] = users .. ' in ' .. part end
end
local function look(key, fields)
  for i, time in ipairs(call('HMGET', key, unpack(fields))) do
    if time and (tonumber(time) or 0) > latest then ahead[#ahead + 1] = fields[i] end
  end
end
look(state, {'first', 'last', 'named', 'repeated'})
if call('EXISTS', prefix .. ':freshness') == 1 then
  look(prefix .. ':freshness', {'last_received', 'verified_at', 'verified_from'})
end
if #ahead > 0 then problem('time_ahead', table.concat(ahead, ', ')) end
return found
