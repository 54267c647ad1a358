#!lua
-- Forget what is kept about some users and cohorts of one partition.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     pairs: cohort id, user id

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
for i = 1, #ARGV, 2 do
  local prefix = base .. 'cohort:' .. ARGV[i] .. ':'
  for _, part in ipairs({'members', 'left', 'seen'}) do
    redis.call('ZREM', prefix .. part, ARGV[i + 1])
  end
end
