-- Refer to objects: the garbage collector keeps them until then, and for `unused_ms` more.
--
-- ARGV: prefix, ms from now, unused_ms, names (SHA-256)...
-- Returns the names of those that the garbage collector is deleting now: they have to be uploaded
-- again, later. A reference only ever moves later. This call and store_condemn.lua exclude each
-- other: either the collector sees the reference, or this call sees that the object is being
-- deleted.
local prefix, keep_ms, unused_ms, FIRST = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 4
-- include: prelude

-- include: store_objects
local refs, deleting = prefix .. 'store:refs', prefix .. 'store:deleting'
local expires, answer = now + keep_ms, {}
for at = FIRST, #ARGV do
  local name = ARGV[at]
  redis.call('ZADD', refs, 'GT', expires, name)
  local key, expires_at = prefix .. 'store:object:' .. name, expires + unused_ms
  local ttl = redis.call('PTTL', key) -- -2: it is not in Redis
  if ttl >= 0 and ttl < expires_at - now then
    redis.call('PEXPIREAT', key, expires_at)
    redis.call('ZADD', prefix .. 'store:expiring', expires_at, name)
    move_ttl(expires_at)
  end
  if tonumber(redis.call('ZSCORE', deleting, name) or 0) > now then
    answer[#answer + 1] = name
  end
end
-- What may be deleted needs no entry: without one, its age decides. So the set does not grow
-- without bound.
local gone = redis.call('ZRANGEBYSCORE', refs, '-inf', now - unused_ms, 'LIMIT', 0, 2 * (#ARGV - FIRST + 1))
if #gone > 0 then
  redis.call('ZREM', refs, unpack(gone))
end
if redis.call('PTTL', refs) < keep_ms + unused_ms then
  redis.call('PEXPIREAT', refs, expires + unused_ms)
end
return answer
