#!lua flags=no-writes
-- Read some of the traits of a user who has very many; for other users, see users.lua.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  user id
-- ARGV[2]  cursor that the last call returned, '0' for the first call
-- ARGV[3]  approximate number of traits
--
-- Returns {cursor for the next call, '0' at the end; traits as from users.lua}. A trait may be
-- returned more than once.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local user = ARGV[1]
local call = redis.call

local found = call('HSCAN', base .. 'user:' .. user, ARGV[2], 'COUNT', ARGV[3])
local row = found[2]
for place = 2, #row, 2 do
  if row[place] == 'true' then
    local tail = string.match(row[place - 1], ':%s*([!-9;-~][^:]*)$')
    local id = tail and string.match(tail, '^(.-)%s*$')
    if id and string.find(id, '[!-~]$') then
      local since = call('ZSCORE', base .. 'cohort:' .. id .. ':members', user)
      if since then row[place] = since end
    else
      row[place] = '?'
    end
  end
end
return {found[1], row}
