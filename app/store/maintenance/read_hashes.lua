#!lua flags=no-writes
-- Read some hashes of one partition.
--
-- KEYS[1]   the partition's change stream; its name gives the other keys
-- ARGV[1]   fields that a hash may have; larger ones are read by other means
-- ARGV[2..] names of the hashes, after the hash tag
--
-- Returns for each a flat list of fields and values, or nil where it is larger or no hash.

local base, most = string.sub(KEYS[1], 1, -#'changes' - 1), tonumber(ARGV[1])
local rows = {}
for i = 2, #ARGV do
  local size = redis.pcall('HLEN', base .. ARGV[i])
  local small = type(size) == 'number' and size > 0 and size <= most
  rows[i - 1] = small and redis.call('HGETALL', base .. ARGV[i])
end
return rows
