#!lua flags=no-writes
-- Which fields the hashes of some users of one partition have.
--
-- KEYS[1]   the partition's change stream; its name gives the other keys
-- ARGV[1]   fields after which no further user is begun
-- ARGV[2]   fields of a user who has too many for one call
-- ARGV[3..] user ids
--
-- Returns {users looked at, places of users whose key is no hash, places of users with too many
-- fields, field, places of the users who have it, field, …}; the first place is 1.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)

local budget, too_many = tonumber(ARGV[1]), tonumber(ARGV[2])
local wrong, large, places, order = {}, {}, {}, {}
local looked_at, count = 0, 0
for i = 1, #ARGV - 2 do
  if count >= budget then break end
  local hash = base .. 'user:' .. ARGV[i + 2]
  local size = redis.pcall('HLEN', hash)
  looked_at = i
  count = count + 1
  if type(size) == 'table' then
    wrong[#wrong + 1] = i
  elseif size >= too_many then
    large[#large + 1] = i
  else
    local fields = redis.call('HKEYS', hash)
    count = count + #fields
    for j = 1, #fields do
      local field = fields[j]
      if not places[field] then
        places[field] = {}
        order[#order + 1] = field
      end
      table.insert(places[field], i)
    end
  end
end

local reply = {looked_at, wrong, large}
for _, field in ipairs(order) do
  reply[#reply + 1] = field
  reply[#reply + 1] = places[field]
end
return reply
