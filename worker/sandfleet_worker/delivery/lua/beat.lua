-- Renew a worker's lease; find its jobs that were cancelled, and its claims that were deleted.
--
-- ARGV: prefix, owner, lease in ms, then claim id and job id of each job it runs
-- Returns {"lost"} where another worker has taken over: a lease that ended is never given back, a late one is renewed;
-- else {"held", {cancelled job ids...}, {ids of claims that are not there...}}. A claim whose run has just ended is not there, too.
local prefix, owner, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
-- include: prelude
-- ZREM first: at maxmemory Redis refuses a write that may need memory only where it is a script's first.
if redis.call('ZREM', prefix .. 'owners', owner) == 0 then
  return { 'lost' }
end
redis.call('ZADD', prefix .. 'owners', now + lease, owner)
local cancelled, missing = {}, {}
for at = 4, #ARGV, 2 do
  if redis.call('EXISTS', prefix .. 'cancel:' .. ARGV[at + 1]) == 1 then
    cancelled[#cancelled + 1] = ARGV[at + 1]
  end
  if redis.pcall('HEXISTS', prefix .. 'claims:' .. owner, ARGV[at]) ~= 1 then
    missing[#missing + 1] = ARGV[at]
  end
end
return { 'held', cancelled, missing }
