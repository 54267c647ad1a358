#!lua flags=allow-oom
-- Erase a user from cohorts that are missing in the user's hash, because the hash was lost or
-- changed by another program.
--
-- KEYS[1]   the partition's change stream; the names of all other keys derive from it
-- ARGV[1]   user id
-- ARGV[2..] cohort ids
--
-- Returns the ids of the cohorts from which the user was erased.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local user = ARGV[1]
local call = redis.call

local hash = base .. 'user:' .. user

-- Whether the user's hash has the cohort's trait: then the user was received again since.
local function has_trait(state)
  local trait, names = unpack(call('HMGET', state, 'trait', 'names'))
  local traits = {trait or ''}
  for _, name in ipairs(names and cjson.decode(names) or {}) do traits[#traits + 1] = name.trait end
  for _, value in ipairs(call('HMGET', hash, unpack(traits))) do
    if value then return true end
  end
  return false
end

local found = {}
for i = 2, #ARGV do
  local prefix = base .. 'cohort:' .. ARGV[i]
  local members, left = prefix .. ':members', prefix .. ':left'
  local seen, before = prefix .. ':seen', prefix .. ':seen-before'
  expect('hash', prefix .. ':state')
  expect('zset', members, left, seen, before)
  call('SREM', prefix .. ':confirmed', user)
  local member = call('ZSCORE', members, user)
  local known = member or call('ZSCORE', left, user)
    or call('ZSCORE', seen, user) or call('ZSCORE', before, user)
  if known and not has_trait(prefix .. ':state') then
    if member then call('HINCRBY', prefix .. ':state', 'left', 1) end
    for _, key in ipairs({members, left, seen, before}) do call('ZREM', key, user) end
    found[#found + 1] = ARGV[i]
  end
end
return found
