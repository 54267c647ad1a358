#!lua flags=no-writes
-- Read the traits of some users and, for each that is true, since when.
--
-- KEYS[1]   the partition's change stream; its name gives the other keys
-- ARGV[1]   traits after which no further user is begun
-- ARGV[2..] user ids
--
-- Returns for each user that was read, in order, a flat list: trait name, 'true' or 'false', and
-- since when in ms since the epoch; '' where the user is not a member; '?' where the name doesn't
-- tell the cohort's id in plain ASCII, so that the caller must find it out (app/cohorts/cohort.py).

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local budget = tonumber(ARGV[1])
local call = redis.call
local rows, count = {}, 0
local asked = {} -- cohort id → {users, their rows, places in these}

-- The id of the cohort that a trait name stands for, or false where it isn't told in plain ASCII.
local ids = {}
local function cohort_id(name)
  local id = ids[name]
  if id == nil then
    local tail = string.match(name, ':%s*([!-9;-~][^:]*)$')
    id = tail and string.match(tail, '^(.-)%s*$')
    if not id or not string.find(id, '[!-~]$') then id = false end
    ids[name] = id
  end
  return id
end

for n = 2, #ARGV do
  if count >= budget then break end
  local row = call('HGETALL', base .. 'user:' .. ARGV[n])
  local traits = #row / 2
  -- Widen pairs to triples, from the end, in place.
  for i = traits, 1, -1 do
    local name, value = row[2 * i - 1], row[2 * i]
    local since = ''
    if value == 'true' then
      local cohort = cohort_id(name)
      if cohort then
        local ask = asked[cohort]
        if not ask then
          ask = {{}, {}, {}}
          asked[cohort] = ask
        end
        local k = #ask[1] + 1
        ask[1][k], ask[2][k], ask[3][k] = ARGV[n], row, 3 * i
      else
        since = '?'
      end
    end
    row[3 * i - 2], row[3 * i - 1], row[3 * i] = name, value, since
  end
  rows[#rows + 1] = row
  count = count + traits + 1
end

for cohort, ask in pairs(asked) do
  local since = call('ZMSCORE', base .. 'cohort:' .. cohort .. ':members', unpack(ask[1]))
  for k = 1, #since do ask[2][k][ask[3][k]] = since[k] or '' end
end
return rows
