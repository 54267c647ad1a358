#!lua flags=allow-oom
-- Erase a user: the hash and all memberships. In one step, but for a user of very many traits, of
-- whom each step takes some, so that no call takes the store long.
--
-- It works where memory is full too: erasing makes room.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV[1]  user id
-- ARGV[2]  'suppress' to refuse the user from now on, else ''
-- ARGV[3]  traits that one step takes at most
-- ARGV[4..]  pairs: a field of the user's hash, id of the cohort that it stands for
--
-- Returns {traits that are still there, the id of the stream's last entry, '0-0' where it has none}:
-- the user may be in entries up to it. Returns {-1, ''}, and has done nothing, if the hash has other
-- fields by now: look them up again.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local user, hash = ARGV[1], base .. 'user:' .. ARGV[1]
local call = redis.call

local traits = call('HLEN', hash)
local rest = traits - (#ARGV - 3) / 2
if rest ~= 0 and traits <= tonumber(ARGV[3]) then return {-1, ''} end
for i = 4, #ARGV, 2 do
  if call('HEXISTS', hash, ARGV[i]) == 0 then return {-1, ''} end
end

local last = '0-0'
if call('EXISTS', KEYS[1]) == 1 then
  local info = call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  -- Whoever replays the stream must know that up to here a user may be missing, or may have left
  -- without an entry. It does not say who.
  call('HSET', base .. 'erased', 'until', last)
end

-- First, so that a user of several steps is refused from the first one on.
call('SREM', base .. 'registered', user)
if ARGV[2] == 'suppress' then call('SADD', base .. 'suppressed', user) end
for i = 5, #ARGV, 2 do
  local prefix = base .. 'cohort:' .. ARGV[i]
  if call('ZREM', prefix .. ':members', user) == 1 then
    call('HINCRBY', prefix .. ':state', 'left', 1)
  end
  call('ZREM', prefix .. ':left', user)
  call('ZREM', prefix .. ':seen', user)
  call('HDEL', hash, ARGV[i - 1])
end
return {rest, last}
