#!lua flags=no-writes
-- Which fields the hashes of some users of one partition have.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV     user ids
--
-- Returns {places of users whose key is no hash, field, places of the users who have it, field, …}.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)

local wrong, places, order = {}, {}, {}
for i = 1, #ARGV do
  local fields = redis.pcall('HKEYS', base .. 'user:' .. ARGV[i])
  if fields.err then
    wrong[#wrong + 1] = i
  else
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

local reply = {wrong}
for _, field in ipairs(order) do
  reply[#reply + 1] = field
  reply[#reply + 1] = places[field]
end
return reply
