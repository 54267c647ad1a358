#!lua flags=no-writes
-- Read the next part of the change stream for a replay, and users' memberships at the same moment.
--
-- KEYS[1]   the partition's change stream; the names of all other keys derive from it
-- ARGV[1]   id of the last entry read, '0-0' to start
-- ARGV[2]   maximum number of entries
-- ARGV[3..] groups: cohort id, number of users, user ids
--
-- Returns {{number of entries ever added, number of entries now, id of the first one or '', id of
-- the last one ever added, id up to which users were erased, number of entries removed for that},
-- entries, scores of all users in members}.

local stream = KEYS[1]
local base = string.sub(stream, 1, -#'changes' - 1)
local call = redis.call

local info = {}
if call('EXISTS', stream) == 1 then
  local flat = call('XINFO', 'STREAM', stream)
  for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
end
local first = info['first-entry']
local erased_until, erased = unpack(call('HMGET', base .. 'erased', 'until', 'entries'))

local scores = {}
local position = 3
while position <= #ARGV do
  local count = tonumber(ARGV[position + 1])
  local users = {unpack(ARGV, position + 2, position + 1 + count)}
  local members = base .. 'cohort:' .. ARGV[position] .. ':members'
  for _, score in ipairs(call('ZMSCORE', members, unpack(users))) do
    scores[#scores + 1] = score
  end
  position = position + 2 + count
end

return {
  {
    info['entries-added'] or 0, info['length'] or 0, first and first[1] or '',
    info['last-generated-id'] or '0-0', erased_until or '0-0', tonumber(erased or 0),
  },
  call('XRANGE', stream, '(' .. ARGV[1], '+', 'COUNT', ARGV[2]),
  scores,
}
