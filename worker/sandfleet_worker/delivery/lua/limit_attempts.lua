-- Note how many attempts the spec of a stock producer's job allows, if the job is still the
-- caller's.
--
-- ARGV: prefix, owner, claim id, job id, max_attempts
-- Returns 1, or 0 where the job's record does not name the claim: another worker has it, or it has
-- ended.
local prefix, owner, claim, id, max_attempts = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job = prefix .. 'job:' .. id
local facts = redis.call('HMGET', job, 'state', 'claim', 'owner')
if (facts[1] ~= 'running' and facts[1] ~= 'waiting') or facts[2] ~= claim or facts[3] ~= owner then
  return 0
end
redis.call('HSET', job, 'max_attempts', max_attempts)
return 1
