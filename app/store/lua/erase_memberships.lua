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

-- The keys of a cohort in which the user may be, and its state.
local function keys_of(cohort)
  local prefix = base .. 'cohort:' .. cohort
  local sets = {prefix .. ':members', prefix .. ':left', prefix .. ':seen', prefix .. ':seen-before'}
  return sets, prefix .. ':state', prefix .. ':confirmed'
end

-- Everything that can fail, before the first write.
expect('hash', hash)
local known, received = {}, {}
for i = 2, #ARGV do
  local sets, state, confirmed = keys_of(ARGV[i])
  expect('hash', state)
  expect('set', confirmed)
  expect('zset', unpack(sets))
  for _, key in ipairs(sets) do known[i] = known[i] or call('ZSCORE', key, user) end
  received[i] = known[i] and has_trait(state) -- has_trait is slow: only for users in a set
end

local found = {}
for i = 2, #ARGV do
  local sets, state, confirmed = keys_of(ARGV[i])
  if not received[i] then call('SREM', confirmed, user) end
  if known[i] and not received[i] then
    if call('ZSCORE', sets[1], user) then call('HINCRBY', state, 'left', 1) end
    for _, key in ipairs(sets) do call('ZREM', key, user) end
    found[#found + 1] = ARGV[i]
  end
end
return found
