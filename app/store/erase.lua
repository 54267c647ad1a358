#!lua
-- Erase a user: the hash and all memberships, in one step.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV[1]  user id
-- ARGV[2]  'suppress' to refuse the user from now on, else ''
-- ARGV[3]  number of fields that the user's hash had when the cohorts were looked up
-- ARGV[4..]  ids of the cohorts that its fields stand for
--
-- Returns 1, or 0 if the hash has changed since: look the cohorts up again.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local user, hash = ARGV[1], base .. 'user:' .. ARGV[1]
local call = redis.call

if call('HLEN', hash) ~= tonumber(ARGV[3]) then return 0 end
for i = 4, #ARGV do
  local prefix = base .. 'cohort:' .. ARGV[i]
  if call('ZREM', prefix .. ':members', user) == 1 then
    call('HINCRBY', prefix .. ':state', 'left', 1)
  end
  call('ZREM', prefix .. ':left', user)
  call('ZREM', prefix .. ':seen', user)
end
call('DEL', hash)
call('SREM', base .. 'registered', user)
if ARGV[2] == 'suppress' then call('SADD', base .. 'suppressed', user) end
return 1
