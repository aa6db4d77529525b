-- Delete dead letters: those with the given ids, those older than their TTL, and the oldest above
-- the bounds.
--
-- ARGV: prefix, TTL of dead letters in s, their largest number, their largest size in bytes in all,
--       then job ids
-- Returns the number of dead letters with the given ids. `dead_dropped` counts only those above the
-- bounds. A key of a wrong type counts as empty.
local prefix, ttl, max_dead_letters, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local FIRST_ID, MAX_DROPPED, DAY = 5, 1000, 86400
local dead, sizes, bytes = prefix .. 'dead', prefix .. 'dead_sizes', prefix .. 'dead_bytes'
local dropped_count = prefix .. 'dead_dropped'
-- include: prelude

-- Deletes a dead letter. Returns 1, or 0 if there is none.
local function drop(id)
  redis.call('DEL', prefix .. 'dead:' .. id)
  try('ZREM', prefix .. 'malformed', id) -- so that another malformed message may be kept
  local size = tonumber(try('HGET', sizes, id) or 0)
  if size and size > 0 then
    redis.call('HDEL', sizes, id)
    if redis.call('EXISTS', bytes) == 1 then -- DECRBY would create it without a TTL
      try('DECRBY', bytes, size)
    end
  end
  return try('ZREM', dead, id) or 0
end

local found = 0
for at = FIRST_ID, #ARGV do
  found = found + drop(ARGV[at])
end
for _, id in ipairs(try('ZRANGEBYSCORE', dead, '-inf', now - ttl * 1000, 'LIMIT', 0, MAX_DROPPED) or {}) do
  drop(id)
end

local function is_too_much()
  return (try('ZCARD', dead) or 0) > max_dead_letters or (tonumber(try('GET', bytes) or 0) or 0) > max_bytes
end
local dropped = 0
while dropped < MAX_DROPPED and is_too_much() do
  local oldest = (try('ZRANGE', dead, 0, 0) or {})[1]
  if not oldest then
    break
  end
  drop(oldest)
  dropped = dropped + 1
end
if dropped > 0 then
  if not try('INCRBY', dropped_count, dropped) then
    redis.call('SET', dropped_count, dropped)
  end
  redis.call('EXPIRE', dropped_count, ttl + DAY)
end
if (try('ZCARD', dead) or 0) == 0 then
  redis.call('DEL', sizes, bytes) -- the sums may be forged: start again from zero
end
return found
