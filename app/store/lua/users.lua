#!lua flags=no-writes
-- Read the traits of some users and, for each that is true, since when.
--
-- KEYS[1]   the partition's change stream; its name gives the other keys
-- ARGV[1]   traits after which no further user is begun
-- ARGV[2..] user ids
--
-- Returns for each user that was read, in order, a flat list of trait names, and for each: 'false';
-- the user's score as a member, in ms since the epoch; 'true' where the user is none all the same; '?'
-- where the name doesn't tell the cohort's id in plain ASCII, so that the caller must find it out
-- (app/cohorts/cohort.py). For a user of very many traits the list holds '' alone: they are read
-- with user_traits.lua, so that no call takes the store long.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local budget = tonumber(ARGV[1])
local VERY_MANY = 1000
local call = redis.call
local rows, count = {}, 0
local asked = {} -- cohort id → users, their rows, places in these, and how many

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
