#!lua flags=no-writes
-- The times that are kept about some users and cohorts of one partition.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     groups: cohort id, number of users, user ids
--
-- Returns a flat list: for each user of each group since when a member, when last told to be out,
-- when last told to be in again.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local call = redis.call

local found = {}
local position = 1
while position <= #ARGV do
  local prefix = base .. 'cohort:' .. ARGV[position] .. ':'
  local count = tonumber(ARGV[position + 1])
  local users = {unpack(ARGV, position + 2, position + 1 + count)}
  local since = call('ZMSCORE', prefix .. 'members', unpack(users))
  local left = call('ZMSCORE', prefix .. 'left', unpack(users))
  local seen = call('ZMSCORE', prefix .. 'seen', unpack(users))
  for i = 1, count do
    found[#found + 1] = since[i]
    found[#found + 1] = left[i]
    found[#found + 1] = seen[i]
  end
  position = position + 2 + count
end
return found
