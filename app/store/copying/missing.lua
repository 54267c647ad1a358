#!lua flags=no-writes
-- Which of some users of one partition are not there.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     user ids
--
-- Returns their places; the first is 1.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local places = {}
for i = 1, #ARGV do
  if redis.call('EXISTS', base .. 'user:' .. ARGV[i]) == 0 then places[#places + 1] = i end
end
return places
