-- What the scripts about objects in Redis share.
--
-- Needs: prefix, now (prelude)
local MAX_FORGOTTEN = 1000

-- Take an object out of the sum.
local function forget_object(name)
  local size = redis.call('HGET', prefix .. 'store:sizes', name)
  if size then
    redis.call('HINCRBY', prefix .. 'store:sizes', 'sum', -size)
    redis.call('HDEL', prefix .. 'store:sizes', name)
  end
  redis.call('ZREM', prefix .. 'store:expiring', name)
end

-- Take the objects that Redis has let expire out of the sum.
local function forget_expired()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'store:expiring', '-inf', '(' .. now, 'LIMIT', 0, MAX_FORGOTTEN)) do
    forget_object(name)
  end
end

-- Returns the bytes of all objects.
local function read_sum()
  return tonumber(redis.call('HGET', prefix .. 'store:sizes', 'sum') or 0)
end

-- Let the two lists of objects live as long as the object that lives until `expires_at` (ms).
local function move_ttl(expires_at)
  for _, list in ipairs({ 'store:expiring', 'store:sizes' }) do
    if redis.call('PTTL', prefix .. list) < expires_at - now then
      redis.call('PEXPIREAT', prefix .. list, expires_at + 1000)
    end
  end
end
