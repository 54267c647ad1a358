#!lua flags=no-writes
-- Read a page of a cohort's members, sorted by score and user id.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  cohort id
-- ARGV[2]  maximum number of members
-- ARGV[3]  only members since this time, in ms since the epoch; '' for all
-- ARGV[4]  score of the last member read; '' for the first page
-- ARGV[5]  id of that member, who may have left since
--
-- Returns a flat list: user id, score.
--
-- If that member has left, the position is found by bisecting ranks, which stays fast for a million
-- members with the same score.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local cohort, limit, least, score, user = unpack(ARGV)
local members = base .. 'cohort:' .. cohort .. ':members'
local call = redis.call

-- Whether a sorts after b in a sorted set, byte by byte. Lua's < depends on the server's locale.
local function comes_after(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end

local first = 0
if score ~= '' then
  local found = call('ZSCORE', members, user)
  if found and tonumber(found) == tonumber(score) then
    first = call('ZRANK', members, user) + 1
  else
    first = call('ZCOUNT', members, '-inf', '(' .. score)
    local beyond = first + call('ZCOUNT', members, score, score)
    while first < beyond do
      local middle = math.floor((first + beyond) / 2)
      if comes_after(call('ZRANGE', members, middle, middle)[1], user) then
        beyond = middle
      else
        first = middle + 1
      end
    end
  end
end
if least ~= '' then first = math.max(first, call('ZCOUNT', members, '-inf', '(' .. least)) end
return call('ZRANGE', members, first, first + limit - 1, 'WITHSCORES')
