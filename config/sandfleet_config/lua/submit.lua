-- Queue jobs, each at most once, all or none of them refused for want of room.
--
-- ARGV: prefix, queue, max_queued (0: no bound), batch ("" none), then 8 for each job:
--       id, message, step (0|3|6|9), idempotency key ("" none), fingerprint, queue_ttl in ms (0: none), max_attempts, record
-- Returns {"full", jobs in the queue}, or for each job {"new"|"same"|"conflict", id}: "same" is a job that was submitted before
-- with the same key or id and the same fingerprint, "conflict" one with another fingerprint; neither is queued.
local prefix, queue, max_queued, batch = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local FIRST, WIDTH = 5, 8
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The names of kombu's priority lists: step 0 has the bare name.
local function list_of(step)
  return prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
end

if max_queued > 0 then
  local queued = 0
  for _, step in ipairs({ '0', '3', '6', '9' }) do
    queued = queued + redis.call('LLEN', list_of(step))
  end
  if queued + (#ARGV - FIRST + 1) / WIDTH > max_queued then
    return { 'full', queued }
  end
end

local answers, is_any_new = {}, false
for at = FIRST, #ARGV, WIDTH do
  local id, message, step, key, fingerprint = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local queue_ttl, max_attempts, record = tonumber(ARGV[at + 5]), ARGV[at + 6], ARGV[at + 7]
  if key ~= '' then
    id = redis.call('GET', prefix .. 'idem:' .. key) or id
  end
  local job = prefix .. 'job:' .. id
  local known = redis.call('HGET', job, 'fingerprint')
  if known then
    answers[#answers + 1] = { known == fingerprint and 'same' or 'conflict', id }
  else
    local expires = queue_ttl > 0 and now + queue_ttl or 0
    -- No TTL: a job's keys live until it has ended.
    redis.call('HSET', job, 'state', 'queued', 'queue', queue, 'step', step, 'batch', batch, 'key', key, 'fingerprint',
      fingerprint, 'submitted', now, 'expires', expires, 'max_attempts', max_attempts, 'attempts', '', 'record', record)
    if key ~= '' then
      redis.call('SET', prefix .. 'idem:' .. key, id)
    end
    if expires > 0 then
      redis.call('ZADD', prefix .. 'expiring', expires, id)
    end
    if batch ~= '' then
      redis.call('RPUSH', prefix .. 'batch:' .. batch, id)
    end
    redis.call('LPUSH', list_of(step), message)
    is_any_new = true
    answers[#answers + 1] = { 'new', id }
  end
end
if is_any_new then
  if batch ~= '' then
    redis.call('PERSIST', prefix .. 'batch:' .. batch)
    redis.call('PERSIST', prefix .. 'done:' .. batch)
  end
  redis.call('SADD', prefix .. 'queues', queue)
  -- Idle workers block on this stream; one entry is enough to wake them all.
  redis.call('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', queue)
end
return answers
