#!lua flags=no-writes
-- Find users in one partition whose hash and sorted sets disagree.
--
-- KEYS[1]   the partition's change stream; the names of all other keys derive from it
-- ARGV[1]   what is walked: 'members' or 'left' (users found there), or 'fields' (fields found in
--           users' hashes). Each problem belongs to one walk, so that the three walks together
--           report it only once.
-- ARGV[2..] groups: cohort id, number of users, user ids; for 'fields', each followed by the field
--
-- Returns a flat list: position of the user (from 1), problem, detail, …

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local walk = ARGV[1]
local call, attempt = redis.call, redis.pcall

local found, place = {}, 0
local function problem(name, detail)
  found[#found + 1] = place
  found[#found + 1] = name
  found[#found + 1] = detail
end

-- The trait names that a user of the cohort may have; during a rename, also earlier ones. None if
-- the cohort's state is lost, which is reported for the cohort.
local function names_of(state)
  local trait, earlier, moving = unpack(call('HMGET', state, 'trait', 'names', 'moving'))
  local names = {trait or nil}
  if trait and moving then
    for _, name in ipairs(cjson.decode(earlier or '[]')) do names[#names + 1] = name.trait end
  end
  return names
end

-- How the hash differs from the value expected under these names, or nil.
local function disagreement(hash, names, expected)
  local values = attempt('HMGET', hash, unpack(names))
  if values.err then return nil end -- reported by the walk of the fields
  local present = false
  for i = 1, #names do
    if values[i] then
      present = true
      if values[i] ~= expected then return names[i] .. ' is ' .. values[i] end
    end
  end
  if expected and not present then return 'no field' end
end

local function check_membership(hash, names, since, left_at)
  if walk == 'left' and since and left_at then problem('member_also_left', '') end
  if walk == 'members' and not since or walk == 'left' and (since or not left_at) then return end
  local wrong = disagreement(hash, names, since and 'true' or 'false')
  if wrong then problem(since and 'member_without_trait' or 'left_without_trait', wrong) end
end

local function check_field(hash, field, names, since, left_at)
  for i = 1, #names do
    if names[i] == field then
      local wrong = not since and not left_at and disagreement(hash, names, nil)
      if wrong then problem('trait_without_membership', wrong) end
      return
    end
  end
  local value = call('HGET', hash, field)
  if not value or (#names == 0 and (since or left_at)) then
    return
  elseif #names > 0 then
    problem('stray_field', field)
  elseif value == 'true' or value == 'false' then
    problem('field_of_unknown_cohort', field)
  else
    problem('foreign_field', field)
  end
end

local stride = walk == 'fields' and 2 or 1
local position = 2
while position <= #ARGV do
  local cohort, count = ARGV[position], tonumber(ARGV[position + 1])
  local prefix = base .. 'cohort:' .. cohort
  local names = names_of(prefix .. ':state')
  local first = position + 2
  local users = {}
  for i = 1, count do users[i] = ARGV[first + stride * (i - 1)] end
  local since = call('ZMSCORE', prefix .. ':members', unpack(users))
  local left_at = walk == 'members' and {} or call('ZMSCORE', prefix .. ':left', unpack(users))
  for i = 1, count do
    place = place + 1
    local hash = base .. 'user:' .. users[i]
    if walk == 'fields' then
      check_field(hash, ARGV[first + 2 * i - 1], names, since[i], left_at[i])
    elseif #names > 0 then
      check_membership(hash, names, since[i], left_at[i])
    end
  end
  position = first + stride * count
end
return found
