-- Say what a live worker's host has: see placing.lua.
--
-- ARGV: prefix, owner, what the host has as JSON, ttl in s, then names and digests of its images
-- Returns 1, or 0 where the worker has no lease: then nothing is said.
local prefix, owner, ttl = ARGV[1], ARGV[2], tonumber(ARGV[4])
local hosts, images = prefix .. 'hosts', prefix .. 'images:' .. ARGV[2]
if not redis.call('ZSCORE', prefix .. 'owners', owner) then
  return 0
end
redis.call('DEL', images) -- the first write, which Redis lets through at maxmemory: see beat.lua
if redis.call('TYPE', hosts).ok ~= 'hash' then
  redis.call('DEL', hosts)
end
redis.call('HSET', hosts, owner, ARGV[3])
redis.call('EXPIRE', hosts, ttl)
for at = 5, #ARGV do
  redis.call('SADD', images, ARGV[at])
end
redis.call('EXPIRE', images, ttl)
-- Removes entries of workers whose lease is gone; reap.lua does so for those that it takes over.
for _, name in ipairs(redis.call('HKEYS', hosts)) do
  if not redis.call('ZSCORE', prefix .. 'owners', name) then
    redis.call('HDEL', hosts, name)
    redis.call('DEL', prefix .. 'images:' .. name)
  end
end
return 1
