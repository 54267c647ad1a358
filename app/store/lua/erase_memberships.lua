#!lua flags=allow-oom
-- Erase a user from cohorts that the user's hash does not tell of: it was lost, or written past the
-- service.
--
-- KEYS[1]   the partition's change stream; its name gives the other keys
-- ARGV[1]   user id
-- ARGV[2..] ids of the cohorts to look at
--
-- Returns the ids of those that knew the user.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local user = ARGV[1]
local call = redis.call

local hash = base .. 'user:' .. user

-- Whether the user's hash tells of a cohort: the user has entered or left again meanwhile.
local function is_told(state)
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
  local members, left, seen = prefix .. ':members', prefix .. ':left', prefix .. ':seen'
  local member = call('ZSCORE', members, user)
  local known = member or call('ZSCORE', left, user) or call('ZSCORE', seen, user)
  if known and not is_told(prefix .. ':state') then
    if member then call('HINCRBY', prefix .. ':state', 'left', 1) end
    for _, key in ipairs({members, left, seen}) do call('ZREM', key, user) end
    found[#found + 1] = ARGV[i]
  end
end
return found
