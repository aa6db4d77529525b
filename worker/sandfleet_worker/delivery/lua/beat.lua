-- Renew a worker's lease, and tell it which of its jobs somebody has cancelled.
--
-- ARGV: prefix, owner, lease in ms, then the ids of the jobs it runs
-- Returns {"lost"} where another worker has taken over: a lease that ended is never given back, a late one is renewed;
-- else {"held", cancelled job ids...}.
local prefix, owner, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- ZREM first: at maxmemory Redis refuses a write that may need memory only where it is a script's first.
if redis.call('ZREM', prefix .. 'owners', owner) == 0 then
  return { 'lost' }
end
redis.call('ZADD', prefix .. 'owners', now + lease, owner)
local answer = { 'held' }
for at = 4, #ARGV do
  if redis.call('EXISTS', prefix .. 'cancel:' .. ARGV[at]) == 1 then
    answer[#answer + 1] = ARGV[at]
  end
end
return answer
