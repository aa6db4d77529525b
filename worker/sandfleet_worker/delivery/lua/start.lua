-- Note that a job which waited starts now: its attempt is recorded.
--
-- ARGV: prefix, owner, claim id, job id, host, worker, id of the host's boot, number of its slot
--       ("": a worker of an earlier release does not say)
-- Returns {"started", attempts, for how many ms it is a suspect ("" it is none)}, {"cancelled"},
-- {"cordoned"} where an operator has marked the host meanwhile, or {"fenced"} where the job's record
-- does not name the claim: another worker has it, or it has ended. Only where it is "started" the
-- program may start.
local prefix, owner, claim, id, host, worker, boot = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local MAX_SUSPECT_MS = 60000
-- include: prelude
local job = prefix .. 'job:' .. id
local facts = redis.call('HMGET', job, 'state', 'claim', 'owner', 'attempts', 'suspect')
if facts[2] ~= claim or facts[3] ~= owner or (facts[1] ~= 'running' and facts[1] ~= 'waiting') then
  return { 'fenced' }
end
local is_json, suspect = pcall(cjson.decode, facts[5] or '')
local ms = is_json and type(suspect) == 'table' and tonumber(suspect.ms)
local suspect_ms = ms and string.format('%d', math.min(MAX_SUSPECT_MS, ms)) or ''
if facts[1] == 'running' then
  return { 'started', facts[4], suspect_ms } -- the answer got lost
end
if redis.call('EXISTS', prefix .. 'cancel:' .. id) == 1 then
  return { 'cancelled' }
elseif try('HEXISTS', prefix .. 'cordons', host) == 1 then
  return { 'cordoned' }
end
local is_list, list = pcall(cjson.decode, facts[4] or '')
list = is_list and type(list) == 'table' and list or {}
list[#list + 1] = { host = host, worker = worker, started = now, boot = boot, slot = tonumber(ARGV[8] or '') }
local attempts = cjson.encode(list)
redis.call('HSET', job, 'state', 'running', 'attempts', attempts)
if ms then
  redis.call('HSET', job, 'suspect_until', now + tonumber(suspect_ms))
end
return { 'started', attempts, suspect_ms }
