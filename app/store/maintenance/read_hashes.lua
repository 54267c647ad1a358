#!lua flags=no-writes
-- Read some hashes of one partition.
--
-- KEYS[1]   the partition's change stream; the names of all other keys derive from it
-- ARGV[1]   maximum number of fields; larger hashes are skipped
-- ARGV[2..] names of the hashes without the prefix and hash tag
--
-- Returns for each a flat list of fields and values, or nil if it was skipped or is not a hash.

local base, most = string.sub(KEYS[1], 1, -#'changes' - 1), tonumber(ARGV[1])
local rows = {}
for i = 2, #ARGV do
  local size = redis.pcall('HLEN', base .. ARGV[i])
  local small = type(size) == 'number' and size > 0 and size <= most
  rows[i - 1] = small and redis.call('HGETALL', base .. ARGV[i])
end
return rows
