-- Put a mark on a host or a queue, change it, or take it away.
--
-- ARGV: prefix, "cordons" or "paused", host or queue, the mark as JSON ("": take it away), largest
--       number of marks
-- Returns "set", "removed", "none" where there was none to take away, or "full".
local prefix, key, name, text, limit = ARGV[1], ARGV[1] .. ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local WAKE_TTL = 3600
-- include: prelude
if redis.call('TYPE', key).ok ~= 'hash' then
  redis.call('DEL', key) -- nothing, or a key of a wrong type
end
if text ~= '' then
  if redis.call('HEXISTS', key, name) == 0 and redis.call('HLEN', key) >= limit then
    return 'full'
  end
  -- The first write, which Redis lets through at maxmemory: a host may have to be taken out then.
  redis.call('HDEL', key, name)
  redis.call('HSET', key, name, text)
  return 'set'
elseif redis.call('HDEL', key, name) == 0 then
  return 'none'
end
try('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', '') -- idle workers claim again
redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
return 'removed'
