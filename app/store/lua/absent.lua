#!lua flags=no-writes
-- Find users of an import's file who are not members of its cohort, some at a time.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  cursor that the last call returned, '' for the first call
-- ARGV[3]  the server process that returned it, '' for the first call
-- ARGV[4]  approximate number of users to look at
-- ARGV[5]  id of the import
--
-- Returns {cursor for the next call, '0' at the end, or if the import has ended; the server process;
-- users}. Users may be returned more than once. Begins again if the cursor is that of another server
-- process: after a restart or a failover, it would skip users.

local prefix = string.sub(KEYS[1], 1, -#'changes' - 1) .. 'cohort:' .. ARGV[1]
local call = redis.call

local run = string.match(call('INFO', 'server'), 'run_id:(%w+)')
if call('GET', prefix .. ':confirmed-of') ~= ARGV[5] then return {'0', run, {}} end
local cursor = ARGV[3] == run and ARGV[2] or '0'
local next_cursor, users = unpack(call('SSCAN', prefix .. ':confirmed', cursor, 'COUNT', ARGV[4]))
local absent = {}
if #users > 0 then
  local since = call('ZMSCORE', prefix .. ':members', unpack(users))
  for i = 1, #users do
    if not since[i] then absent[#absent + 1] = users[i] end
  end
end
return {next_cursor, run, absent}
