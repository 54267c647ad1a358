#!lua flags=no-writes
-- Read which fields the hashes of some users in one partition have.
--
-- KEYS[1]   the partition's change stream; the names of all other keys derive from it
-- ARGV[1]   number of fields after which no more users are read
-- ARGV[2]   a user with at least this many fields has too many for one call
-- ARGV[3..] user ids
--
-- Returns {number of users read, positions of users whose key is not a hash, positions of users
-- with too many fields, field, positions of the users who have it, field, …}. Positions start at 1.

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
