#!lua flags=allow-oom
-- Erase a user: the hash and all memberships. A user with very many traits is erased in several
-- calls, so that none blocks the store for long.
--
-- Allowed when memory is full, as erasing frees memory.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  user id
-- ARGV[2]  'suppress' to skip the user in all future requests, else ''
-- ARGV[3]  maximum number of traits in one call
-- ARGV[4..]  pairs: trait name in the user's hash, id of its cohort
--
-- Returns {number of traits left, id of the stream's last entry or '0-0'}; entries up to that one
-- may contain the user. Returns {-1, ''} without erasing anything if the hash has changed since the
-- caller read it.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local user, hash = ARGV[1], base .. 'user:' .. ARGV[1]
local call = redis.call

local traits = call('HLEN', hash)
local rest = traits - (#ARGV - 3) / 2
if rest ~= 0 and traits <= tonumber(ARGV[3]) then return {-1, ''} end
for i = 4, #ARGV, 2 do
  if call('HEXISTS', hash, ARGV[i]) == 0 then return {-1, ''} end
end

expect('stream', KEYS[1])
expect('hash', base .. 'erased')
expect('set', base .. 'registered', base .. 'suppressed')
for i = 5, #ARGV, 2 do
  local prefix = base .. 'cohort:' .. ARGV[i]
  expect('zset', prefix .. ':members', prefix .. ':left', prefix .. ':seen', prefix .. ':seen-before')
  expect('set', prefix .. ':confirmed')
  expect('hash', prefix .. ':state')
end

local last = '0-0'
if call('EXISTS', KEYS[1]) == 1 then
  local info = call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  -- For replays of the stream: up to this entry, some user's changes may be missing. Which user is
  -- not recorded.
  call('HSET', base .. 'erased', 'until', last)
end

-- Before the traits: if the erasure takes several calls, this takes effect with the first.
call('SREM', base .. 'registered', user)
if ARGV[2] == 'suppress' then call('SADD', base .. 'suppressed', user) end
for i = 5, #ARGV, 2 do
  local prefix = base .. 'cohort:' .. ARGV[i]
  if call('ZREM', prefix .. ':members', user) == 1 then
    call('HINCRBY', prefix .. ':state', 'left', 1)
  end
  call('ZREM', prefix .. ':left', user)
  call('ZREM', prefix .. ':seen', user)
  call('ZREM', prefix .. ':seen-before', user)
  call('SREM', prefix .. ':confirmed', user)
  call('HDEL', hash, ARGV[i - 1])
end
return {rest, last}
