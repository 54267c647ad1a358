#!lua flags=no-writes
-- The hashes of some users of one partition.
--
-- KEYS[1]   the partition's change stream; its name gives the other keys
-- ARGV[1]   fields after which no further user is begun
-- ARGV[2]   fields of a user who has too many for one call
-- ARGV[3..] user ids
--
-- Returns for each user that was read, in order, a flat list of fields and values; empty for a key
-- that is no hash; {''} for a user of too many fields.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local budget, too_many = tonumber(ARGV[1]), tonumber(ARGV[2])
local rows, count = {}, 0
for i = 3, #ARGV do
  if count >= budget then break end
  local hash = base .. 'user:' .. ARGV[i]
  local size = redis.pcall('HLEN', hash)
  local row = {}
  if type(size) == 'number' then
    row = size >= too_many and {''} or redis.call('HGETALL', hash)
  end
  rows[i - 2] = row
  count = count + #row / 2 + 1
end
return rows
