#!lua flags=no-writes
-- The hashes of some users of one partition.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     user ids
--
-- Returns for each a flat list of fields and values; empty for a key that is no hash.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local rows = {}
for i = 1, #ARGV do
  local row = redis.pcall('HGETALL', base .. 'user:' .. ARGV[i])
  rows[i] = row.err and {} or row
end
return rows
