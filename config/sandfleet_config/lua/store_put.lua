-- Put one object into Redis, unless it is there.
--
-- ARGV: prefix, name (SHA-256), bytes, bound on all objects together in bytes, ms that an object
--       lives to which nothing refers
-- Returns {1, 0} if it was written; {0, its size} if it was there; {-1, bytes of all objects} if
-- there is no room for it.
local prefix, name, data, bound, unused_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
-- include: prelude

-- include: store_objects
local key = prefix .. 'store:object:' .. name
if redis.call('EXISTS', key) == 1 then
  return { 0, redis.call('STRLEN', key) }
end
forget_expired()
local sum = read_sum()
if sum + #data > bound then
  return { -1, sum }
end
local reference = tonumber(redis.call('ZSCORE', prefix .. 'store:refs', name) or 0)
local expires_at = math.max(now, reference) + unused_ms
redis.call('SET', key, data, 'PXAT', expires_at)
redis.call('ZADD', prefix .. 'store:expiring', expires_at, name)
redis.call('HSET', prefix .. 'store:sizes', name, #data)
redis.call('HINCRBY', prefix .. 'store:sizes', 'sum', #data)
move_ttl(expires_at)
return { 1, 0 }
