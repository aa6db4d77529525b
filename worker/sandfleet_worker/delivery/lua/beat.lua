-- Renew a worker's lease; find its jobs that were cancelled, and its claims that were deleted.
--
-- ARGV: prefix, owner, lease in ms, then claim id and job id of each job it runs
-- Returns {"lost"} where another worker has taken over: a lease that ended is never given back, a
-- late one is renewed; else {"held", {id and cancel mark of each cancelled job...}, {ids of claims
-- that are not there...}}. A claim whose run has just ended is not there, too. The mark is
-- "cancel", or why the job's batch was stopped.
local prefix, owner, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
-- include: prelude
-- ZREM first: at maxmemory Redis refuses a write that may need memory only where it is a script's
-- first.
if redis.call('ZREM', prefix .. 'owners', owner) == 0 then
  return { 'lost' }
end
redis.call('ZADD', prefix .. 'owners', now + lease, owner)
local cancelled, missing = {}, {}
for at = 4, #ARGV, 2 do
  local mark = redis.pcall('GET', prefix .. 'cancel:' .. ARGV[at + 1])
  if mark then
    cancelled[#cancelled + 1] = ARGV[at + 1]
    cancelled[#cancelled + 1] = type(mark) == 'string' and mark or 'cancel'
  end
  if redis.pcall('HEXISTS', prefix .. 'claims:' .. owner, ARGV[at]) ~= 1 then
    missing[#missing + 1] = ARGV[at]
  end
end
return { 'held', cancelled, missing }
