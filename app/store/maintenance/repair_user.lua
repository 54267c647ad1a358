#!lua
-- Make a user's hash agree with the sorted sets of one cohort. The members set decides.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  user id
-- ARGV[3]  a field of the hash that belongs to the cohort, or ''
--
-- Adds nothing to the change stream, as no membership changes. Returns 1, or 0 if the user can't be
-- repaired without guessing.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local cohort, user, field = ARGV[1], ARGV[2], ARGV[3]
local prefix = base .. 'cohort:' .. cohort
local hash = base .. 'user:' .. user
local call = redis.call

local kind = call('TYPE', hash).ok
if kind ~= 'hash' and kind ~= 'none' then return 0 end

local trait, names = unpack(call('HMGET', prefix .. ':state', 'trait', 'names'))
local member = call('ZSCORE', prefix .. ':members', user)
local left_at = call('ZSCORE', prefix .. ':left', user)

if not trait then
  local value = field ~= '' and call('HGET', hash, field)
  if member or left_at or not (value == 'true' or value == 'false') then return 0 end
  call('HDEL', hash, field)
  return 1
end

if field ~= '' and field ~= trait then call('HDEL', hash, field) end
for _, name in ipairs(names and cjson.decode(names) or {}) do
  if name.trait ~= trait then call('HDEL', hash, name.trait) end
end
if member then
  call('ZREM', prefix .. ':left', user)
  call('HSET', hash, trait, 'true')
elseif left_at or call('HEXISTS', hash, trait) == 1 then
  call('HSET', hash, trait, 'false')
  -- The time is unknown, so any statement that arrives is newer.
  call('ZADD', prefix .. ':left', 'NX', 0, user)
end
return 1
