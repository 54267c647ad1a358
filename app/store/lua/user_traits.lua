#!lua flags=no-writes
-- Read some of the traits of a user who has very many, as users.lua reads those of others.
--
-- KEYS[1]  the partition's change stream; its name gives the other keys
-- ARGV[1]  user id
-- ARGV[2]  where the last call ended, '0' to begin
-- ARGV[3]  traits, about
--
-- Returns {where this call ended, '0' at the end, traits as users.lua tells them}. A trait may be
-- told twice.

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
