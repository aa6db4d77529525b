-- Record how a job ended, once: outcome, completion of its batch, the end of its claim and the TTL of its keys in one step.
--
-- ARGV: prefix, owner, claim id, job id, code, result (Celery's record as JSON), result_ttl in s, reason for the dead letters
--       ("" none), ttl of dead letters in s
-- A worker gives its owner and claim. With owner "" the job must still be queued: a producer, or a worker's sweep, ends a job
-- that nobody has claimed (CANCELLED, EXPIRED).
-- Returns 1, or 0 where the job is not the caller's (any more): then nothing is recorded but a line in the duplicates log.
local prefix, owner, claim, id, code, result = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local ttl, reason, dead_ttl = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local SETTLED_TTL = 86400
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local job = prefix .. 'job:' .. id
local claims = prefix .. 'claims:' .. owner

local message = ''
if owner == '' then
  if redis.call('HGET', job, 'state') ~= 'queued' then
    return 0
  end
else
  message = redis.call('HGET', claims, claim)
  -- At maxmemory Redis refuses a write that may need memory only where it is a script's first. What has run is recorded.
  redis.call('HDEL', claims, claim)
  if not message then
    -- The caller repeats what was done, since the answer got lost.
    if redis.call('HGET', job, 'ended_by') == claim then
      return 1
    end
    -- One line however often the call is repeated; none where no run ended, but a decision about a dead worker's job came late.
    local is_first = redis.call('SET', prefix .. 'settled:' .. claim, 'fenced', 'NX', 'EX', SETTLED_TTL)
    if is_first and claim:sub(1, 6) ~= 'taken-' then
      redis.call('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
        'kind', 'outcome', 'code', code)
      redis.call('EXPIRE', prefix .. 'duplicates', dead_ttl)
    end
    return 0
  end
end

redis.call('ZREM', prefix .. 'expiring', id) -- before any write that may need memory: a job that was cancelled ends at maxmemory too
local key = prefix .. 'celery-task-meta-' .. id
redis.call('SET', key, result, 'EX', ttl)
-- Celery's own backend publishes the record on a channel of the key's name: a stock `get` waits there.
redis.call('PUBLISH', key, result)

local facts = redis.call('HMGET', job, 'batch', 'key', 'attempts', 'flag')
local batch, idempotency_key, attempts = facts[1] or '', facts[2] or '', facts[3] or ''
if owner ~= '' and facts[4] == 'start' and attempts ~= '' then
  local list = cjson.decode(attempts)
  list[#list].code, list[#list].ended = code, now
  redis.call('HSET', job, 'attempts', cjson.encode(list))
end
redis.call('HSET', job, 'state', 'ended', 'code', code, 'ended', now, 'ended_by', claim)
redis.call('HDEL', job, 'message', 'claim', 'owner', 'flag')
redis.call('EXPIRE', job, ttl)
redis.call('ZREM', prefix .. 'delayed', id)
redis.call('DEL', prefix .. 'cancel:' .. id)
if idempotency_key ~= '' then
  redis.call('EXPIRE', prefix .. 'idem:' .. idempotency_key, ttl)
end
if batch ~= '' then
  local members, done = prefix .. 'batch:' .. batch, prefix .. 'done:' .. batch
  if redis.call('RPUSH', done, id) >= redis.call('LLEN', members) then
    redis.call('EXPIRE', members, ttl)
    redis.call('EXPIRE', done, ttl)
  end
end
if reason ~= '' then
  local dead = prefix .. 'dead:' .. id
  redis.call('HSET', dead, 'message', message, 'reason', reason, 'code', code, 'at', now, 'queue',
    redis.call('HGET', job, 'queue') or '', 'attempts', redis.call('HGET', job, 'attempts') or '')
  redis.call('EXPIRE', dead, dead_ttl)
  redis.call('ZADD', prefix .. 'dead', now, id)
  redis.call('ZREMRANGEBYSCORE', prefix .. 'dead', '-inf', now - dead_ttl * 1000)
  redis.call('EXPIRE', prefix .. 'dead', dead_ttl)
end
return 1
