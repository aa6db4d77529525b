-- Give a worker its lease.
--
-- ARGV: prefix, owner, lease in ms
-- Returns when it ends (ms of Redis's clock).
local time = redis.call('TIME')
local ends = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('ZREM', ARGV[1] .. 'owners', ARGV[2]) -- first, for the sake of a Redis at maxmemory: see beat.lua
redis.call('ZADD', ARGV[1] .. 'owners', ends, ARGV[2])
return ends
