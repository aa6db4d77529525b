-- Note how many attempts, and how long in the queue, the spec of a stock producer's job allows, if
-- the job is still the caller's.
--
-- ARGV: prefix, owner, claim id, job id, max_attempts, queue_ttl in ms
-- Returns 1, or 0 where the job's record does not name the claim: another worker has it, or it has
-- ended.
local prefix, owner, claim, id, max_attempts = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job = prefix .. 'job:' .. id
local facts = redis.call('HMGET', job, 'state', 'claim', 'owner', 'submitted', 'expires')
if (facts[1] ~= 'running' and facts[1] ~= 'waiting') or facts[2] ~= claim or facts[3] ~= owner then
  return 0
end
redis.call('HSET', job, 'max_attempts', max_attempts)
if (tonumber(facts[5]) or 0) <= 0 and tonumber(facts[4]) then
  redis.call('HSET', job, 'queue_ttl', ARGV[6], 'expires', string.format('%d', tonumber(facts[4]) + tonumber(ARGV[6])))
end
return 1
