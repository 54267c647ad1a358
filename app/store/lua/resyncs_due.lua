#!lua flags=no-writes
-- Find unfinished resyncs of a partition that the background work should look at.
--
-- KEYS[1]  the partition's change stream; its name gives the other key
-- ARGV[1]  maximum number of resyncs; twice as many after the clock was set back
--
-- Returns {the time in ms since the epoch; cohort ids}.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- No pause is longer than this many ms: a later time was noted before the clock was set back.
local LONGEST = 10 * 60 * 1000

local function between(first, last)
  return redis.call('ZRANGE', base .. 'resyncs', first, last, 'BYSCORE', 'LIMIT', 0, ARGV[1])
end

local due = between('-inf', string.format('%d', now))
for _, cohort in ipairs(between(string.format('%d', now + LONGEST), '+inf')) do
  due[#due + 1] = cohort
end
return {now, due}
