#!lua
-- Make what one partition keeps about a cohort as a whole agree with what is kept elsewhere.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV[1]  cohort id
-- ARGV[2]  'home' in the cohort's home partition, 'elsewhere', or 'gone' where it was deleted
-- ARGV[3]  home: how many have left, in all partitions
-- ARGV[4]  home: when it is late, as in 'due', or '' for never noted
-- ARGV[5]  '1' where there is background work to do
-- ARGV[6..] fields and values of its state
--
-- The state is kept at home, and wherever there are users. Returns the members here.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local cohort, where = ARGV[1], ARGV[2]
local prefix = base .. 'cohort:' .. cohort .. ':'
local state = prefix .. 'state'
local call = redis.call

local function forget()
  call('UNLINK', state)
  call('ZREM', base .. 'cohorts', cohort)
  call('SREM', base .. 'jobs', cohort)
end

if where == 'gone' then
  forget()
  call('UNLINK', prefix .. 'members', prefix .. 'left', prefix .. 'seen')
  call('ZREM', base .. 'due', cohort)
  return 0
end

local members = call('ZCARD', prefix .. 'members')
if where ~= 'home' and ARGV[5] ~= '1' and members == 0
  and call('EXISTS', prefix .. 'left') == 0 then
  forget()
  return 0
end

local gone = where == 'home' and tonumber(ARGV[3]) or 0
call('DEL', state)
call('HSET', state, unpack(ARGV, 6))
call('HSET', state, 'entered', string.format('%d', gone + members))
call('HSET', state, 'left', string.format('%d', gone))
call('ZADD', base .. 'cohorts', 0, cohort)
call(ARGV[5] == '1' and 'SADD' or 'SREM', base .. 'jobs', cohort)
if where == 'home' then
  if ARGV[4] == '' then
    call('ZREM', base .. 'due', cohort)
  else
    call('ZADD', base .. 'due', ARGV[4], cohort)
  end
end
return members
