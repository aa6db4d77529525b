-- Note how many attempts, and how long in the queue, the spec of a stock producer's job allows, if
-- the job is still the caller's.
--
-- ARGV: prefix, owner, claim id, job id, max_attempts, queue_ttl in ms
-- Returns 1, or 0 where the job's record does not name the claim: another worker has it, or it has
-- ended.
local prefix, owner, claim, id, max_attempts = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
-- include: prelude
local job = prefix .. 'job:' .. id
local facts = redis.call('HMGET', job, 'state', 'claim', 'owner', 'submitted', 'expires', 'queue_ttl')
if (facts[1] ~= 'running' and facts[1] ~= 'waiting') or facts[2] ~= claim or facts[3] ~= owner then
  return 0
end
redis.call('HSET', job, 'max_attempts', max_attempts)
local queue_ttl, expires = tonumber(ARGV[6]), tonumber(facts[5]) or 0
if expires > 0 then -- it was given back before: by how much its time differs from what was assumed then
  expires = expires + queue_ttl - (tonumber(facts[6]) or queue_ttl)
else
  expires = (tonumber(facts[4]) or now) + queue_ttl
end
redis.call('HSET', job, 'queue_ttl', ARGV[6], 'expires', string.format('%d', expires))
return 1
