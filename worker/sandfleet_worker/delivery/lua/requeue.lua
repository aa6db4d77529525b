-- Give a claimed job back to its queue: for another try, or because its worker stops.
--
-- ARGV: prefix, owner, claim id, job id, mode, code, delay in ms, host to avoid ("" none), for how long in ms, message;
--       of mode "putback" also why (a text for people), what the job needs (JSON, "" where it is not known), and its queue_ttl
--       in ms, which its record does not have where a stock producer sent it
-- Mode "retry" ends the attempt with `code` and counts it; "release" takes it back as if it had not been: its code is for the
-- duplicates log only. "putback" does so too, of a job that never started, and says why; its time in the queue goes on.
-- Returns 1, or 0 where the claim is not the caller's (any more): then nothing changes but for a line in the duplicates log.
-- A claim that was deleted is still the caller's while the job's record names it: a take-over writes another one there.
-- Errors for a queue whose key has a wrong type, and changes nothing: the job stays claimed.
local prefix, owner, claim, id, mode, code = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local WAKE_TTL, SETTLED_TTL, DUPLICATES_TTL = 3600, 86400, 7 * 86400
local delay, avoid, avoid_ms = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local job = prefix .. 'job:' .. id
local claims = prefix .. 'claims:' .. owner

-- Like redis.call, but nil where the key has a wrong type.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    return nil
  end
  return reply
end

local facts = redis.call('HMGET', job, 'queue', 'step', 'attempts', 'flag', 'expires', 'submitted', 'queue_ttl')
-- A record that was deleted meanwhile names no queue: the job goes to the default one.
local queue, step, attempts = facts[1] or 'sandfleet', facts[2] or '0', facts[3] or ''
local list_key = prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
local message = try('HGET', claims, claim)
if not message then
  local named = redis.call('HMGET', job, 'state', 'claim', 'owner')
  if named[1] == 'running' and named[2] == claim and named[3] == owner then
    message = ARGV[10]
  end
end
if message and not try('LLEN', list_key) then
  return redis.error_reply('WRONGTYPE the queue of job ' .. id .. ' is no list')
end
try('HDEL', claims, claim) -- the first write: see beat.lua
if not message then
  local settled = redis.call('GET', prefix .. 'settled:' .. claim)
  if settled then
    -- The caller repeats what was done, since the answer got lost.
    return settled == 'given back' and 1 or 0
  end
  redis.call('SET', prefix .. 'settled:' .. claim, 'fenced', 'EX', SETTLED_TTL)
  if claim:sub(1, 6) ~= 'taken-' then -- else no run ended, only a decision about a dead worker's job came late
    try('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
      'kind', 'run', 'code', code)
    redis.call('EXPIRE', prefix .. 'duplicates', DUPLICATES_TTL)
  end
  return 0
end
if facts[4] == 'start' and attempts ~= '' then
  local is_list, list = pcall(cjson.decode, attempts)
  list = is_list and type(list) == 'table' and list or {}
  if mode == 'release' or mode == 'putback' then
    list[#list] = nil
  elseif type(list[#list]) == 'table' then
    list[#list].code, list[#list].ended = code, now
  end
  attempts = #list > 0 and cjson.encode(list) or ''
end
redis.call('SET', prefix .. 'settled:' .. claim, 'given back', 'EX', SETTLED_TTL)
redis.call('HSET', job, 'state', 'queued', 'attempts', attempts, 'queue', queue, 'step', step)
redis.call('HDEL', job, 'claim', 'owner', 'flag')

-- Of a job that somebody did take the time in the queue starts anew, and still ends.
local expires = tonumber(facts[5]) or 0
if mode == 'putback' then
  redis.call('HSET', job, 'why', ARGV[11], 'why_at', now)
  if ARGV[12] ~= '' then
    redis.call('HSET', job, 'needs', ARGV[12])
  end
  if expires <= 0 then
    expires = (tonumber(facts[6]) or now) + tonumber(ARGV[13])
    redis.call('HSET', job, 'queue_ttl', ARGV[13], 'expires', expires)
  end
  try('ZADD', prefix .. 'expiring', expires, id)
elseif expires > 0 then
  local queue_ttl = tonumber(facts[7]) or expires - (tonumber(facts[6]) or now)
  redis.call('HSET', job, 'queue_ttl', queue_ttl, 'expires', now + queue_ttl)
  try('ZADD', prefix .. 'expiring', now + queue_ttl, id)
end
if avoid ~= '' then
  redis.call('HSET', job, 'avoid', avoid, 'avoid_until', now + delay + avoid_ms)
end
local is_delayed = false
if delay > 0 then
  redis.call('HSET', job, 'message', message)
  is_delayed = try('ZADD', prefix .. 'delayed', now + delay, id) ~= nil
end
if not is_delayed then
  redis.call('HDEL', job, 'message')
  redis.call('RPUSH', list_key, message)
  try('SADD', prefix .. 'queues', queue)
  try('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', queue)
  redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
end
return 1
