#!lua
-- Make some users of one partition exactly as they are elsewhere. Emits nothing.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     for each user: user id, number of fields, fields and values, number of cohorts; for
--          each of these: cohort id, and the times in 'members', 'left' and 'seen', '' for none
--
-- Returns {places of the users who were otherwise (the first is 1), {place, field, place, field …}};
-- the fields are those that a user had here and not there: what is kept about their cohorts is
-- still to be dropped.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local call = redis.call

local different, stale = {}, {}
local position, place = 1, 0
while position <= #ARGV do
  local user, fields = ARGV[position], tonumber(ARGV[position + 1])
  place = place + 1
  position = position + 2
  local hash, changed = base .. 'user:' .. user, false

  local wanted = {}
  for i = position, position + 2 * fields - 1, 2 do wanted[ARGV[i]] = ARGV[i + 1] end
  position = position + 2 * fields
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
  for field, value in pairs(wanted) do
    call('HSET', hash, field, value)
    changed = true
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
return {different, stale}
