#!lua flags=no-writes
-- Find cohorts of a home partition whose lateness has changed since the last notification.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  maximum number of cohorts to look at
-- ARGV[2]  late cohorts to skip, which earlier calls have looked at
--
-- Returns {ids of cohorts that are late; that are no longer late; that were deleted; number of late
-- cohorts looked at}.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local due, notified = base .. 'due', base .. 'notified:late'
local call = redis.call

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local late = {}
local page = call('ZRANGE', due, '(0', string.format('%d', now), 'BYSCORE', 'LIMIT', ARGV[2], ARGV[1])
for _, cohort in ipairs(page) do
  if call('SISMEMBER', notified, cohort) == 0 then late[#late + 1] = cohort end
end

local arriving, gone = {}, {}
-- Only the first call for a partition looks at cohorts that were reported as late. It selects them
-- at random, so that all get their turn.
for _, cohort in ipairs(call('SRANDMEMBER', notified, ARGV[2] == '0' and ARGV[1] or 0)) do
  local at = tonumber(call('ZSCORE', due, cohort))
  if not at then
    gone[#gone + 1] = cohort
  elseif at > now then
    arriving[#arriving + 1] = cohort
  end
end
return {late, arriving, gone, #page}
