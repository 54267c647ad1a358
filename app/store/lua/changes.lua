#!lua flags=no-writes
-- Read a partition's change stream from a place on.
--
-- KEYS[1]  the change stream
-- ARGV[1]  id of the last entry that was read; '' to begin with the oldest one that is held
-- ARGV[2]  entries at most
-- ARGV[3]  bytes of users after which no further entry is read
--
-- Returns {1 if entries after that place are gone, id of the last entry ever added or '0-0',
-- 1 if there may be more, entries as XRANGE gives them, the place before these}.

local stream, place = KEYS[1], ARGV[1]
local limit, budget = tonumber(ARGV[2]), tonumber(ARGV[3])
local AT_ONCE = 8
local call = redis.call

local newest = call('GET', stream .. ':last') or '0-0'
if place == newest then return {0, newest, 0, {}, newest} end

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
local start = place == '' and '-' or '(' .. place
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
  -- What was added since was erased, with the users in it. Trimming always leaves the newest entry.
  -- Unless nothing was ever added: a copy's stream begins at the newest entry of its source's.
  local lost = before(newest, place ~= '' and place or newest)
    or (place ~= '' and call('GET', stream .. ':begun') == newest)
  return {lost and 1 or 0, newest, 0, {}, newest}
end
if entries[#entries][1] ~= newest then more = 1 end

-- The first entry must follow on the place. Where others were between the two, they were erased,
-- unless nothing is held any more from before them: then they were trimmed. Where it follows on an
-- earlier one, the store was emptied or set back, and what the caller has read is another story.
local lost, previous = 0, field(entries[1], 'previous')
if place ~= '' and previous ~= place then
  local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
  if oldest == entries[1][1] or before(previous, place) then lost = 1 end
end
return {lost, newest, more, entries, place ~= '' and place or previous}
