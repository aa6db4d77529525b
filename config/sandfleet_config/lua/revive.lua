-- Put a dead letter back into its queue, as if it were submitted now.
--
-- ARGV: prefix, job id, step, idempotency key ("" none), fingerprint, queue_ttl in ms, max_attempts, record, batch ("" none)
-- Returns "queued", "unknown" without such a dead letter or "alive" where the job is queued or runs already. The old outcome goes.
local prefix, id, step, key, fingerprint = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local queue_ttl, max_attempts, record, batch = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9]
local WAKE_TTL = 3600
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead, job = prefix .. 'dead:' .. id, prefix .. 'job:' .. id

local facts = redis.call('HMGET', dead, 'message', 'queue')
local message, queue = facts[1] or '', facts[2] or ''
if message == '' or queue == '' then
  return 'unknown'
end
local list = prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
-- Find forged keys of a wrong type before anything is changed: these reads fail on them.
redis.call('LLEN', list)
redis.call('ZCARD', prefix .. 'expiring')
if batch ~= '' then
  redis.call('LLEN', prefix .. 'batch:' .. batch)
  redis.call('LLEN', prefix .. 'done:' .. batch)
end
redis.call('DEL', dead)
redis.pcall('ZREM', prefix .. 'dead', id)
local size = tonumber(redis.pcall('HGET', prefix .. 'dead_sizes', id))
if size then
  redis.call('HDEL', prefix .. 'dead_sizes', id)
  if redis.call('EXISTS', prefix .. 'dead_bytes') == 1 then -- or it would be made, without a TTL
    redis.pcall('DECRBY', prefix .. 'dead_bytes', size)
  end
end
local state = redis.pcall('HGET', job, 'state') -- of a wrong type it is no record, and goes
if state == 'queued' or state == 'waiting' or state == 'running' then
  return 'alive'
end

if key ~= '' then
  local holder = redis.pcall('GET', prefix .. 'idem:' .. key)
  if type(holder) == 'string' and holder ~= id then
    key = '' -- the key was given to another job after this one's was gone
  else
    redis.call('SET', prefix .. 'idem:' .. key, id)
  end
end
redis.call('DEL', job, prefix .. 'celery-task-meta-' .. id, prefix .. 'cancel:' .. id)
redis.call('HSET', job, 'state', 'queued', 'queue', queue, 'step', step, 'batch', batch, 'key', key, 'fingerprint', fingerprint,
  'submitted', now, 'expires', now + queue_ttl, 'queue_ttl', queue_ttl, 'max_attempts', max_attempts, 'attempts', '',
  'record', record)
redis.call('ZADD', prefix .. 'expiring', now + queue_ttl, id)
if batch ~= '' then
  local members, done = prefix .. 'batch:' .. batch, prefix .. 'done:' .. batch
  redis.call('LREM', done, 0, id)
  if not redis.call('LPOS', members, id) then
    redis.call('RPUSH', members, id)
  end
  redis.call('PERSIST', members)
  redis.call('PERSIST', done)
end
redis.call('LPUSH', list, message)
redis.pcall('SADD', prefix .. 'queues', queue)
redis.pcall('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', queue)
redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
return 'queued'
