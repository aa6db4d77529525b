-- Give a claimed job back to its queue: for another try, or because its worker stops.
--
-- ARGV: prefix, owner, claim id, job id, mode, code, delay in ms, host to avoid ("" none), for how long in ms
-- Mode "retry" ends the attempt with `code` and counts it; "release" takes it back as if it had not been: its code is for the
-- duplicates log only.
-- Returns 1, or 0 where the claim is not the caller's (any more): then nothing changes but for a line in the duplicates log.
local prefix, owner, claim, id, mode, code = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local WAKE_TTL, SETTLED_TTL, DUPLICATES_TTL = 3600, 86400, 7 * 86400
local delay, avoid, avoid_ms = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local job = prefix .. 'job:' .. id
local claims = prefix .. 'claims:' .. owner

local message = redis.call('HGET', claims, claim)
redis.call('HDEL', claims, claim) -- first: see beat.lua
if not message then
  local settled = redis.call('GET', prefix .. 'settled:' .. claim)
  if settled then
    -- The caller repeats what was done, since the answer got lost.
    return settled == 'given back' and 1 or 0
  end
  redis.call('SET', prefix .. 'settled:' .. claim, 'fenced', 'EX', SETTLED_TTL)
  if claim:sub(1, 6) ~= 'taken-' then -- else no run ended, only a decision about a dead worker's job came late
    redis.call('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
      'kind', 'run', 'code', code)
    redis.call('EXPIRE', prefix .. 'duplicates', DUPLICATES_TTL)
  end
  return 0
end
local facts = redis.call('HMGET', job, 'queue', 'step', 'attempts', 'flag', 'expires', 'submitted', 'queue_ttl')
local queue, step, attempts = facts[1], facts[2], facts[3] or ''
if facts[4] == 'start' and attempts ~= '' then
  local list = cjson.decode(attempts)
  if mode == 'release' then
    list[#list] = nil
  else
    list[#list].code, list[#list].ended = code, now
  end
  attempts = #list > 0 and cjson.encode(list) or ''
end
redis.call('SET', prefix .. 'settled:' .. claim, 'given back', 'EX', SETTLED_TTL)
redis.call('HSET', job, 'state', 'queued', 'attempts', attempts)
redis.call('HDEL', job, 'claim', 'owner', 'flag')

-- Somebody did take the job: its time in the queue starts anew, and still ends.
local expires = tonumber(facts[5] or 0)
if expires > 0 then
  local queue_ttl = tonumber(facts[7] or expires - tonumber(facts[6]))
  redis.call('HSET', job, 'queue_ttl', queue_ttl, 'expires', now + queue_ttl)
  redis.call('ZADD', prefix .. 'expiring', now + queue_ttl, id)
end
if avoid ~= '' then
  redis.call('HSET', job, 'avoid', avoid, 'avoid_until', now + delay + avoid_ms)
end
if delay > 0 then
  redis.call('HSET', job, 'message', message)
  redis.call('ZADD', prefix .. 'delayed', now + delay, id)
else
  redis.call('RPUSH', prefix .. queue .. (step == '0' and '' or '\6\22' .. step), message)
  redis.call('SADD', prefix .. 'queues', queue)
  redis.call('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', queue)
  redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
end
return 1
