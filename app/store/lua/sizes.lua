#!lua flags=allow-oom
-- Record the sizes of cohorts over time, for their charts.
--
-- Allowed when memory is full, as this is part of erasing a user and takes only a few bytes.
--
-- KEYS[1]   the change stream of the cohorts' home partition; the names of all other keys
--           derive from it
-- ARGV[1]   time in s since the epoch; '' for the server's
-- ARGV[2..] cohort ids, each followed by its size
--
-- A cohort's sizes are pairs of unsigned 32-bit numbers, big-endian: s since the epoch, and size.
-- After the first, there is at most one pair a minute. When there are too many, every second pair
-- of the older half is dropped, which keeps the recent past in detail and the whole past in outline.

local base = string.sub(KEYS[1], 1, -#'changes' - 1)
local call = redis.call
local PAIR, BYTES = '>I4I4', 8
local MAX_PAIRS, MIN_SECONDS = 240, 60

local at = tonumber(ARGV[1]) or tonumber(call('TIME')[1])

local function pair(sizes, n)
  return struct.unpack(PAIR, sizes, n * BYTES + 1)
end

local function thinned(sizes)
  local kept = {}
  for n = 0, MAX_PAIRS / 2 - 1, 2 do
    kept[#kept + 1] = string.sub(sizes, n * BYTES + 1, (n + 1) * BYTES)
  end
  return table.concat(kept) .. string.sub(sizes, MAX_PAIRS / 2 * BYTES + 1)
end

for i = 2, #ARGV, 2 do
  local cohort, size = ARGV[i], tonumber(ARGV[i + 1])
  -- Skip a cohort that has been deleted since it was counted.
  if call('ZSCORE', base .. 'due', cohort) then
    local key = base .. 'cohort:' .. cohort .. ':sizes'
    local sizes = call('GET', key) or ''
    local n = math.floor(#sizes / BYTES)
    -- What is ahead of the present is from a clock that was wrong.
    while n > 0 and pair(sizes, n - 1) > at do n = n - 1 end
    local keep = n
    if n > 0 then
      local last, same = pair(sizes, n - 1)
      if n > 1 and math.floor(last / MIN_SECONDS) == math.floor(at / MIN_SECONDS) then
        keep = n - 1
      elseif n > 1 and same == size and select(2, pair(sizes, n - 2)) == size then
        keep = n - 1
      end
    end
    sizes = string.sub(sizes, 1, keep * BYTES) .. struct.pack(PAIR, at, size)
    if keep + 1 > MAX_PAIRS then sizes = thinned(sizes) end
    call('SET', key, sizes)
  end
end
return 1
