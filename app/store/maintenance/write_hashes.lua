#!lua
-- Write some hashes of one partition, in place of what is there.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     for each hash: its name after the hash tag, number of values that follow, fields and
--          values

local base, position = string.sub(KEYS[1], 1, -#'changes' - 1), 1
while position <= #ARGV do
  local key, last = base .. ARGV[position], position + 1 + tonumber(ARGV[position + 1])
  redis.call('UNLINK', key)
  redis.call('HSET', key, unpack(ARGV, position + 2, last))
  position = last + 1
end
