-- End a worker's lease. What it still holds is taken over at once and not only when the lease would
-- have ended.
--
-- ARGV: prefix, owner
-- Returns how many claims it leaves behind.
local prefix, owner = ARGV[1], ARGV[2]
local left = redis.pcall('HLEN', prefix .. 'claims:' .. owner)
left = type(left) == 'number' and left or 0 -- a key of a wrong type holds no claim
local was_there = redis.call('ZREM', prefix .. 'owners', owner) == 1 -- first: see beat.lua
redis.pcall('HDEL', prefix .. 'hosts', owner)
redis.call('DEL', prefix .. 'images:' .. owner, prefix .. 'status:' .. owner, prefix .. 'running:' .. owner)
if was_there and left > 0 then
  redis.call('ZADD', prefix .. 'owners', 0, owner)
end
return left
