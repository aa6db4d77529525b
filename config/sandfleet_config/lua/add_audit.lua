-- Append an entry to the audit.
--
-- ARGV: prefix, largest number of entries (about), TTL in s, then fields and values
-- Returns its id.
local key, limit, ttl = ARGV[1] .. 'audit', ARGV[2], ARGV[3]
if redis.call('TYPE', key).ok ~= 'stream' then
  redis.call('DEL', key) -- nothing, or a key of a wrong type
end
-- The first write, which Redis lets through at maxmemory: the act that it tells has been done.
redis.call('XTRIM', key, 'MAXLEN', '~', limit)
local id = redis.call('XADD', key, 'MAXLEN', '~', limit, '*', unpack(ARGV, 4))
redis.call('EXPIRE', key, ttl)
return id
