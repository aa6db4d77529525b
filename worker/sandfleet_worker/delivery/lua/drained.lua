-- End the attempt of a job that may not start again, since its worker stops: it is recorded, not
-- charged. The outcome follows (finish.lua).
--
-- ARGV: prefix, owner, claim id, job id, code
-- Returns 1, or 0 where the job's record does not name the claim: another worker has it, or it has
-- ended.
local prefix, owner, claim, id, code = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
-- include: prelude
local job = prefix .. 'job:' .. id
local facts = redis.call('HMGET', job, 'state', 'claim', 'owner', 'attempts')
if facts[1] ~= 'running' or facts[2] ~= claim or facts[3] ~= owner then
  return 0
end
redis.call('HDEL', job, 'message') -- the first write, which Redis lets through at maxmemory: see beat.lua
local is_list, list = pcall(cjson.decode, facts[4] or '')
local last = is_list and type(list) == 'table' and list[#list]
if type(last) == 'table' and not last.ended then
  last.code, last.ended, last.charged = code, now, false
  redis.call('HSET', job, 'attempts', cjson.encode(list))
end
return 1
