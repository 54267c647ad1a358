#!lua flags=no-writes
-- Read a partition's change stream after a given entry.
--
-- KEYS[1]  the change stream
-- ARGV[1]  id of the last entry read, the position; '' to start with the oldest entry
-- ARGV[2]  maximum number of entries
-- ARGV[3]  bytes of user ids after which no more entries are read
--
-- Returns {1 if entries after the position were lost, id of the last entry ever added or '0-0',
-- 1 if there may be more, entries as from XRANGE, the position before the first of them}.

local stream, position = KEYS[1], ARGV[1]
local limit, budget = tonumber(ARGV[2]), tonumber(ARGV[3])
-- Entries to read at a time, so that the limit on bytes is not overshot by much.
local AT_ONCE = 8
local call = redis.call

local newest = call('GET', stream .. ':last') or '0-0'
if position == newest then return {0, newest, 0, {}, newest} end

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
  return ''
end

local function before(a, b)
  local ms_a, n_a = string.match(a, '(%d+)-(%d+)')
  local ms_b, n_b = string.match(b, '(%d+)-(%d+)')
  if ms_a ~= ms_b then return tonumber(ms_a) < tonumber(ms_b) end
  return tonumber(n_a) < tonumber(n_b)
end

local entries, bytes, more = {}, 0, 0
local start = position == '' and '-' or '(' .. position
while #entries < limit and bytes < budget do
  local part = call('XRANGE', stream, start, '+', 'COUNT', math.min(AT_ONCE, limit - #entries))
  for i = 1, #part do
    entries[#entries + 1] = part[i]
    bytes = bytes + #field(part[i], 'users')
  end
  if #part == 0 then break end
  start = '(' .. part[#part][1]
end
if #entries == 0 then
  -- Entries that were erased with their users are no loss. Entries are lost if the store was reset
  -- to an earlier state, if all were trimmed by age (age.lua sets `begun`), or if this is a copy to
  -- which nothing was added yet (copy.py sets `begun` too).
  local lost = before(newest, position ~= '' and position or newest)
    or (position ~= '' and call('GET', stream .. ':begun') == newest)
  return {lost and 1 or 0, newest, 0, {}, newest}
end
if entries[#entries][1] ~= newest then more = 1 end

-- The first entry should directly follow the position. Entries missing in between were erased or,
-- if no older entry is left, trimmed. If the first entry follows one before the position, the store
-- was emptied or restored, and the caller has read entries that no longer exist.
local lost, previous = 0, field(entries[1], 'previous')
if position ~= '' and previous ~= position then
  local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
  if oldest == entries[1][1] or before(previous, position) then lost = 1 end
end
return {lost, newest, more, entries, position ~= '' and position or previous}
