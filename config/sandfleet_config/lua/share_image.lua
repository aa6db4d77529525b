-- Share an image under a name, or share it no more; the pins of the name's objects change in the
-- same step.
--
-- ARGV: prefix, name, digest (empty: share it no more), the most names, then the SHA-256 of each
--       object of it
-- Returns 1, 0 if there was nothing to end, or -1 if there are too many names. The pins of the
-- name's earlier objects go. Who calls this has referred to these objects before, so they stay for
-- a day; see store_keep.lua. Of two pushes at once, the last counts, and its objects are pinned.
-- The earlier digest is noted for EARLIER_MS: batches that began with it go on.
local prefix, name, digest, max_names, FIRST = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), 5
local EARLIER_MS, MAX_EARLIER = 2 * 86400 * 1000, 1000
-- include: prelude
local shared, pins, owner = prefix .. 'shared_images', prefix .. 'store:pins', ' image:' .. name
if not try('HLEN', shared) then -- a forged key of a wrong type
  redis.call('DEL', shared)
end
if digest ~= '' and redis.call('HEXISTS', shared, name) == 0 and redis.call('HLEN', shared) >= max_names then
  return -1
end
for _, pin in ipairs(redis.call('ZRANGE', pins, 0, -1)) do
  if pin:sub(65) == owner then
    redis.call('ZREM', pins, pin)
  end
end
local before, earlier = redis.call('HGET', shared, name), prefix .. 'shared_images:earlier'
if before and before ~= digest then
  if not try('ZREMRANGEBYSCORE', earlier, '-inf', now) then
    redis.call('DEL', earlier)
  end
  redis.call('ZADD', earlier, now + EARLIER_MS, name .. ' ' .. before)
  redis.call('ZREMRANGEBYRANK', earlier, 0, -MAX_EARLIER - 1)
  redis.call('PEXPIRE', earlier, EARLIER_MS)
end
if digest == '' then
  return redis.call('HDEL', shared, name)
end
redis.call('HSET', shared, name, digest)
for at = FIRST, #ARGV do
  redis.call('ZADD', pins, 0, ARGV[at] .. owner)
end
return 1
