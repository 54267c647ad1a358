#!lua
-- Make some users of one partition exactly as they are elsewhere. Emits nothing.
--
-- KEYS[1]   the partition's change stream; its name gives the other keys
-- ARGV[1]   fields of a user who has too many for one call; 'part' where what follows is only a part
--           of one, so that no other field is taken out
-- ARGV[2..] for each user: user id, number of fields, fields and values, number of cohorts; for
--           each of these: cohort id, and the times in 'members', 'left' and 'seen', '' for none
--
-- Returns {places of the users who were otherwise (the first is 1), {place, field, place, field …},
-- places of the users who have too many fields here, and were left alone}; the fields are those that
-- a user had here and not there: what is kept about their cohorts is still to be dropped.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local too_many = tonumber(ARGV[1])
local call = redis.call

local different, stale, large = {}, {}, {}

-- Make the hash what is wanted. Returns whether it was otherwise.
local function put_fields(hash, wanted, place)
  local changed = false
  if too_many then
    local there = call('HGETALL', hash)
    for i = 1, #there, 2 do
      local value = wanted[there[i]]
      if value == nil then
        call('HDEL', hash, there[i])
        stale[#stale + 1] = place
        stale[#stale + 1] = there[i]
        changed = true
      elseif value == there[i + 1] then
        wanted[there[i]] = nil
      end
    end
  end
  for field, value in pairs(wanted) do
    if too_many or call('HGET', hash, field) ~= value then
      call('HSET', hash, field, value)
      changed = true
    end
  end
  return changed
end

local position, place = 2, 0
while position <= #ARGV do
  local user, fields = ARGV[position], tonumber(ARGV[position + 1])
  place = place + 1
  position = position + 2
  local hash, changed = base .. 'user:' .. user, false

  local wanted = {}
  for i = position, position + 2 * fields - 1, 2 do wanted[ARGV[i]] = ARGV[i + 1] end
  position = position + 2 * fields
  if too_many and call('HLEN', hash) >= too_many then
    large[#large + 1] = place
  else
    changed = put_fields(hash, wanted, place)
  end

  local cohorts = tonumber(ARGV[position])
  position = position + 1
  for _ = 1, cohorts do
    local prefix = base .. 'cohort:' .. ARGV[position] .. ':'
    for i, part in ipairs({'members', 'left', 'seen'}) do
      local score = ARGV[position + i]
      local key = prefix .. part
      local now = call('ZSCORE', key, user)
      if score == '' then
        if now then
          call('ZREM', key, user)
          changed = true
        end
      elseif not now or tonumber(now) ~= tonumber(score) then
        call('ZADD', key, score, user)
        changed = true
      end
    end
    position = position + 4
  end
  if changed then different[#different + 1] = place end
end
return {different, stale, large}
