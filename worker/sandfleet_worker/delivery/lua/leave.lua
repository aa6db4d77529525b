-- End a worker's lease. What it still holds is taken over at once and not only when the lease would have ended.
--
-- ARGV: prefix, owner
-- Returns how many claims it leaves behind.
local prefix, owner = ARGV[1], ARGV[2]
local left = redis.call('HLEN', prefix .. 'claims:' .. owner)
local was_there = redis.call('ZREM', prefix .. 'owners', owner) == 1 -- first: see beat.lua
if was_there and left > 0 then
  redis.call('ZADD', prefix .. 'owners', 0, owner)
end
return left
