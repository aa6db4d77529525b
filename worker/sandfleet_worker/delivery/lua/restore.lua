-- Put a claim back that somebody has deleted, so that another worker can take the job over if this
-- one dies.
--
-- ARGV: prefix, owner, claim id, job id, message
-- Returns 1, or 0 where the job's record does not name the claim: it has ended, or was taken over.
local prefix, owner, claim, id, message = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local facts = redis.call('HMGET', prefix .. 'job:' .. id, 'state', 'claim', 'owner')
if (facts[1] ~= 'running' and facts[1] ~= 'waiting') or facts[2] ~= claim or facts[3] ~= owner then
  return 0
end
redis.call('HDEL', prefix .. 'job:' .. id, 'message') -- the first write, which Redis lets through at maxmemory: see beat.lua
local claims = prefix .. 'claims:' .. owner
if redis.call('TYPE', claims).ok ~= 'hash' then
  redis.call('DEL', claims)
end
redis.call('HSET', claims, claim, message)
return 1
