#!lua flags=no-writes
-- Find unfinished resyncs of a partition that the background work should look at.
--
-- KEYS[1]  the partition's change stream; its name gives the other key
-- ARGV[1]  maximum number of resyncs
--
-- Returns {the time in ms since the epoch; cohort ids}.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = redis.call('ZRANGE', base .. 'resyncs', '-inf', string.format('%d', now), 'BYSCORE',
  'LIMIT', 0, ARGV[1])
return {now, due}
