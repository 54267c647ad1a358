#!lua flags=no-writes
-- Find members of a cohort whom its resync has not confirmed, some at a time.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  id of the resync; '' to look even if it is not open here
-- ARGV[3]  cursor that the last call returned, '0' for the first call
-- ARGV[4]  the server process that returned it, '' for the first call
-- ARGV[5]  approximate number of members to look at
--
-- Returns {cursor for the next call, '0' at the end; the server process; members looked at; those
-- not confirmed}. Members may be returned more than once. Returns {'restart'; …} if the cursor is
-- that of another server process, {'ended'; …} if the resync is not open here, and {'lost'; …} if
-- the partition lost data since it was opened, or if what was confirmed has expired.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local prefix = base .. 'cohort:' .. ARGV[1]
local call = redis.call

local run = string.match(call('INFO', 'server'), 'run_id:(%w+)')
if ARGV[2] ~= '' then
  local open, marked = unpack(call('HMGET', prefix .. ':state', 'resync', 'resync_mark'))
  if open ~= ARGV[2] then return {'ended', run, 0, {}} end
  local is_same = not marked or marked == call('HGET', base .. 'mark', 'identity')
  if not is_same or call('GET', prefix .. ':confirmed-of') ~= open then
    return {'lost', run, 0, {}}
  end
end
if ARGV[4] ~= '' and ARGV[4] ~= run then return {'restart', run, 0, {}} end

local reply = call('ZSCAN', prefix .. ':members', ARGV[3], 'COUNT', ARGV[5])
local users = {}
for i = 1, #reply[2], 2 do users[#users + 1] = reply[2][i] end
local rest = {}
if #users > 0 then
  local found = call('SMISMEMBER', prefix .. ':confirmed', unpack(users))
  for i = 1, #users do
    if found[i] == 0 then rest[#rest + 1] = users[i] end
  end
end
return {reply[1], run, #users, rest}
