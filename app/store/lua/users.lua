#!lua flags=no-writes
-- Read the traits of some users and, for each trait that is true, since when.
--
-- KEYS[1]   the partition's change stream; the names of all other keys derive from it
-- ARGV[1]   number of traits after which no more users are read
-- ARGV[2..] user ids
--
-- Returns, for each user read, in order, a flat list of trait names and values. A value is 'false';
-- the user's score as a member, in ms since the epoch; 'true' if the trait is true but the user is
-- not a member; or '?' if the cohort id in the name is missing, or does not begin and end with
-- printable ASCII, and the caller must derive it (app/cohorts/cohort.py). For a user with very many
-- traits the list is just ''; user_traits.lua reads them in parts, so that no call blocks the store
-- for long.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local budget = tonumber(ARGV[1])
local VERY_MANY = 1000
local call = redis.call
local rows, count = {}, 0
local asked = {} -- by cohort id: users, their rows, positions in the rows, and how many

-- The cohort id in a trait name, or false if the caller must derive it.
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
  local user = ARGV[n]
  local hash = base .. 'user:' .. user
  local row = call('HLEN', hash) > VERY_MANY and {''} or call('HGETALL', hash)
  for place = 2, #row, 2 do
    if row[place] == 'true' then
      local cohort = cohort_id(row[place - 1])
      if cohort then
        local ask = asked[cohort]
        if not ask then
          ask = {users = {}, rows = {}, places = {}, count = 0}
          asked[cohort] = ask
        end
        local k = ask.count + 1
        ask.users[k], ask.rows[k], ask.places[k], ask.count = user, row, place, k
      else
        row[place] = '?'
      end
    end
  end
  rows[n - 1] = row
  count = count + #row / 2 + 1
end

for cohort, ask in pairs(asked) do
  local since = call('ZMSCORE', base .. 'cohort:' .. cohort .. ':members', unpack(ask.users))
  local of, places = ask.rows, ask.places
  for k = 1, #since do
    if since[k] then of[k][places[k]] = since[k] end
  end
end
return rows
