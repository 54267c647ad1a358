#!lua
-- Replace some hashes of one partition.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV     for each hash: its name without the prefix and hash tag, the number of arguments that
--          follow, fields and values

local base, position = string.sub(KEYS[1], 1, -#'changes' - 1), 1
while position <= #ARGV do
  local key, last = base .. ARGV[position], position + 1 + tonumber(ARGV[position + 1])
  redis.call('UNLINK', key)
  redis.call('HSET', key, unpack(ARGV, position + 2, last))
  position = last + 1
end
