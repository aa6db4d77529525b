-- Note that a claimed job waits for what its start needs: it has not started, and its attempt is
-- taken back.
--
-- ARGV: prefix, owner, claim id, job id
-- Returns 1, or 0 where the job's record does not name the claim: another worker has it, or it has
-- ended.
local prefix, owner, claim, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local job = prefix .. 'job:' .. id
local facts = redis.call('HMGET', job, 'state', 'claim', 'owner', 'attempts')
if facts[2] ~= claim or facts[3] ~= owner or (facts[1] ~= 'running' and facts[1] ~= 'waiting') then
  return 0
end
if facts[1] == 'waiting' then
  return 1 -- the answer got lost
end
redis.call('HDEL', job, 'suspect_until') -- the first write, which Redis lets through at maxmemory: see beat.lua
local is_list, list = pcall(cjson.decode, facts[4] or '')
list = is_list and type(list) == 'table' and list or {}
list[#list] = nil
redis.call('HSET', job, 'state', 'waiting', 'attempts', #list > 0 and cjson.encode(list) or '')
return 1
