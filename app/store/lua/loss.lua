#!lua flags=allow-oom
-- Update or remove the record of a loss in one partition.
--
-- KEYS[1]  the partition's change stream; the names of all other keys derive from it
-- ARGV[1]  'spread', 'examined', 'acknowledge' or 'forget'
-- ARGV[2]  spread, examined: time of the loss, ms since the epoch
-- ARGV[3]  spread: kind of loss; examined: id of the last cohort that was marked, '' for all
-- ARGV[4]  spread: when it was first found
--
-- The record is a hash: 'kind', 'lost' or 'set_back'; 'since' and 'at', when it was first and last
-- found in any partition; 'found', if it was found in this partition; 'acknowledged', when it was
-- acknowledged; 'examined', the last cohort of the partition that has been marked; 'done', if all
-- have been. mark.lua writes it where a loss is found.
--
-- Returns 1 if the record changed, else 0.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local action, at, value, since = unpack(ARGV)
local loss = base .. 'loss'
local call = redis.call

local LOSS_KEPT = 90 * 24 * 3600 * 1000
local SAME_LOSS = 60 * 1000 -- as in mark.lua

local clock = call('TIME')
local now = string.format('%d', clock[1] * 1000 + math.floor(clock[2] / 1000))
local recorded, found_here = unpack(call('HMGET', loss, 'at', 'found'))

if action == 'spread' then
  if recorded and tonumber(recorded) >= tonumber(at) then return 0 end
  call('UNLINK', loss)
  call('HSET', loss, 'kind', value, 'at', at, 'since', since)
  if found_here and at - recorded <= SAME_LOSS then call('HSET', loss, 'found', 1) end
  call('PEXPIRE', loss, LOSS_KEPT)
elseif not recorded or (action == 'examined' and recorded ~= at) then
  return 0
elseif action == 'examined' then
  if value == '' then call('HSET', loss, 'done', 1) else call('HSET', loss, 'examined', value) end
elseif action == 'acknowledge' then
  call('HSET', loss, 'acknowledged', now)
else
  call('UNLINK', loss)
end
return 1
