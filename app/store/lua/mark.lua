#!lua flags=allow-oom
-- Compare a partition with what an observer outside the store remembers of it, and advance its
-- mark. Notes a loss if the partition is not what it was.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  what the observer remembers: identity, or '' for nothing
-- ARGV[2]  position
-- ARGV[3]  token of the observer who advanced the mark to this position
-- ARGV[4]  id of the newest stream entry that the observer knows of, or ''
-- ARGV[5]  the observer's own token
-- ARGV[6]  'advance' to advance the mark; '' to do so only if the identity is new to the observer
-- ARGV[7]  a random id, for a partition that needs a new identity
-- ARGV[8]  the confirmations that the observer knows of, or ''
--
-- The mark is a hash: 'identity', random and kept until a loss; 'earlier', those before it;
-- 'position', a number that grows; 'confirmations', the number of changes to who is confirmed in
-- resyncs (apply.lua, resync_begin.lua); and the tokens of those who advanced it to the last
-- positions, by position modulo SLOTS. A partition gets a mark with its first data.
--
-- Returns {what was found, identity, position}: 'empty' (nothing to lose yet), 'same', 'lost' or
-- 'set_back'. After a loss the identity changes in the same step, so that only one observer finds
-- it, and the others learn of it from the identity. The position is nil if it was not advanced.

local stream = KEYS[1]
local base = string.sub(stream, 1, -#'changes' - 1)
local remembered, position_then, token_then, newest, token, advance, random, confirmations =
  unpack(ARGV)
local mark, loss = base .. 'mark', base .. 'loss'
local call = redis.call

-- How many positions the mark remembers, each with the token of who advanced it there. If the store
-- goes back and a position is reached again, its token differs.
local SLOTS = 256
local EARLIER_KEPT = 20
-- A loss that is further ahead than this many ms was found while the store's clock was wrong.
local AHEAD = 5 * 60 * 1000
-- How long a loss is remembered, and the time within which findings in different partitions are one
-- loss, in ms. A second finding in the same partition is another loss.
local LOSS_KEPT, SAME_LOSS = 90 * 24 * 3600 * 1000, 60 * 1000

local function integer(value) return string.format('%d', value) end

local identity, position, earlier = unpack(call('HMGET', mark, 'identity', 'position', 'earlier'))
position, position_then = tonumber(position or 0), tonumber(position_then) or 0
earlier = earlier and cjson.decode(earlier) or {}
-- A key of another type must fail here, before the first write.
local loss_kind, loss_at, found_here, acknowledged =
  unpack(call('HMGET', loss, 'kind', 'at', 'found', 'acknowledged'))

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if loss_at and tonumber(loss_at) > now + AHEAD then
  -- The time of the loss is unknown, but whatever begins from now on begins after it.
  loss_at = integer(now)
  call('HSET', loss, 'at', loss_at)
end

-- Whether the mark was set back to before the position that the observer remembers.
local function is_behind()
  if position < position_then then return true end
  if position - position_then >= SLOTS then return false end -- too long ago to tell
  return call('HGET', mark, integer(position_then % SLOTS)) ~= token_then
end

local function parts(id)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

local function is_before(id, other)
  local ms, number = parts(id)
  local other_ms, other_number = parts(other)
  return ms < other_ms or (ms == other_ms and number < other_number)
end

-- Whether the stream lacks the newest entry that was acknowledged.
local function lacks_newest()
  if newest == '' then return false end
  local last = call('GET', stream .. ':last')
  if not last or is_before(last, newest) then return true end
  if last == newest or #call('XRANGE', stream, newest, newest) > 0 then return false end
  -- Trimmed or erased, unless there are older entries and this one cannot have been erased.
  local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not oldest or is_before(newest, oldest[1]) then return false end
  local erased_until = call('HGET', base .. 'erased', 'until')
  return not erased_until or is_before(erased_until, newest)
end

-- Whether some of the confirmations that were acknowledged are gone.
local function lacks_confirmations()
  local wanted = tonumber(confirmations)
  return wanted and tonumber(call('HGET', mark, 'confirmations') or 0) < wanted
end

local function is_earlier(wanted)
  for _, one in ipairs(earlier) do
    if one == wanted then return true end
  end
  return false
end

local found = 'same'
if remembered == '' then
  if not identity
    and call('EXISTS', base .. 'cohorts', base .. 'registered', base .. 'suppressed') == 0
  then
    return {'empty', '', 0}
  end
elseif not identity then
  found = 'lost'
elseif remembered ~= identity then
  if not is_earlier(remembered) then found = 'lost' end
elseif is_behind() or lacks_newest() or lacks_confirmations() then
  found = 'set_back'
end

if found ~= 'same' then
  if identity then earlier[#earlier + 1] = identity end
  if remembered ~= identity then earlier[#earlier + 1] = remembered end
  while #earlier > EARLIER_KEPT do table.remove(earlier, 1) end
  call('HSET', mark, 'earlier', cjson.encode(earlier))
  if found_here or acknowledged or loss_kind ~= found or now - loss_at > SAME_LOSS then
    call('UNLINK', loss)
    call('HSET', loss, 'kind', found, 'since', integer(now))
  end
  call('HSETNX', loss, 'since', loss_at or integer(now))
  -- Set 'at' even if it is the same loss: what was confirmed since the other finding may be missing
  -- in this partition.
  call('HSET', loss, 'at', integer(now), 'found', 1)
  call('HDEL', loss, 'examined', 'done')
  call('PEXPIRE', loss, LOSS_KEPT)
end
if found ~= 'same' or not identity then
  identity = random
  call('HSET', mark, 'identity', identity)
end
if advance == '' and remembered == identity then return {found, identity} end
position = math.max(position, position_then) + 1
call('HSET', mark, 'position', integer(position), integer(position % SLOTS), token)
return {found, identity, position}
