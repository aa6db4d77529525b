-- Take the next job off the queues and record it under its worker's lease, in one step.
--
-- ARGV: prefix, owner, claim id (new for each job, the same when a call is repeated because its answer got lost), host, worker,
--       max_attempts of jobs that do not say, then the names of queues, whose turn it is first
-- Returns {"lost"} without a lease, {"late"} where the lease has run out and may still be renewed, {"none"}, {"again"} where
-- nothing but waste was found so far, or {"job", id, flag, message, queue, attempts, max_attempts}; the last item of every
-- answer that comes from the queues is how many messages went to the dead letters, for want of an id. With the flag "start" the
-- attempt is counted; "cancelled" and "expired" jobs are handed out for their outcome only.
local FIRST_QUEUE, MAX_WASTE, MAX_AVOIDED, MAX_PROMOTED, DEAD_TTL, WAKE_TTL = 7, 64, 16, 64, 7 * 86400, 3600
local prefix, owner, claim, host, worker, default_attempts = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claims = prefix .. 'claims:' .. owner

local lease = redis.call('ZSCORE', prefix .. 'owners', owner)
if not lease then
  return { 'lost' }
elseif tonumber(lease) < now then
  return { 'late' }
end
-- It changes nothing, but is a write that Redis refuses at maxmemory: there, what runs comes to its end and nothing new begins.
redis.call('ZADD', prefix .. 'owners', 'XX', lease, owner)

local waste, set_aside_count = 0, 0
local function answer(id, message)
  local facts = redis.call('HMGET', prefix .. 'job:' .. id, 'flag', 'queue', 'attempts', 'max_attempts')
  return { 'job', id, facts[1] or 'start', message, facts[2] or '', facts[3] or '', facts[4] or default_attempts,
    set_aside_count }
end

local held = redis.call('HGET', claims, claim)
if held then
  return answer(cjson.decode(held).headers.id, held)
end

local function list_of(queue, step)
  return prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
end

local function promote_delayed()
  local due = redis.call('ZRANGEBYSCORE', prefix .. 'delayed', '-inf', now, 'LIMIT', 0, MAX_PROMOTED)
  for _, id in ipairs(due) do
    redis.call('ZREM', prefix .. 'delayed', id)
    local job = prefix .. 'job:' .. id
    local facts = redis.call('HMGET', job, 'message', 'queue', 'step')
    if facts[1] then
      redis.call('HDEL', job, 'message')
      -- The right end is where the next claim looks: the job has waited its turn already.
      redis.call('RPUSH', list_of(facts[2], facts[3]), facts[1])
      redis.call('SADD', prefix .. 'queues', facts[2])
    end
  end
  if #due > 0 then
    redis.call('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', '')
    redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
  end
end

local has_other_host
local function is_other_host_alive()
  if has_other_host == nil then
    has_other_host = false
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'owners', now, '+inf')) do
      if name:match('^(.*):[^:]*:[^:]*$') ~= host then
        has_other_host = true
      end
    end
  end
  return has_other_host
end

local function set_aside(queue, message, reason)
  waste, set_aside_count = waste + 1, set_aside_count + 1
  local id = 'message-' .. claim .. '-' .. waste
  redis.call('HSET', prefix .. 'dead:' .. id, 'message', message, 'reason', reason, 'code', '', 'at', now, 'queue', queue,
    'attempts', '')
  redis.call('EXPIRE', prefix .. 'dead:' .. id, DEAD_TTL)
  redis.call('ZADD', prefix .. 'dead', now, id)
  redis.call('EXPIRE', prefix .. 'dead', DEAD_TTL)
end

local function drop(id, reason)
  waste = waste + 1
  redis.call('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
    'kind', 'message', 'code', reason)
  redis.call('EXPIRE', prefix .. 'duplicates', DEAD_TTL)
end

local function read_headers(message)
  local is_json, decoded = pcall(cjson.decode, message)
  if not is_json then
    return nil, 'it is not JSON'
  end
  local headers = type(decoded) == 'table' and decoded.headers
  local id = type(headers) == 'table' and headers.id
  if type(id) ~= 'string' or #id > 128 or not id:match('^[A-Za-z0-9][A-Za-z0-9._:@-]*$') then
    return nil, 'it is no message with a usable id'
  end
  return headers
end

-- Returns the answer, "avoid" where another host shall take the job, or nil for waste.
local function take(queue, step, message)
  local headers, reason = read_headers(message)
  if not headers then
    return set_aside(queue, message, reason)
  end
  local id = headers.id
  local job = prefix .. 'job:' .. id
  local facts = redis.call('HMGET', job, 'state', 'code', 'expires', 'avoid', 'avoid_until', 'attempts')
  local state, code, attempts = facts[1], facts[2], facts[6] or ''
  if state == 'ended' or redis.call('EXISTS', prefix .. 'celery-task-meta-' .. id) == 1 then
    if code == 'CANCELLED' or code == 'EXPIRED' then
      waste = waste + 1 -- it was ended in the queue, and its message had to stay there until now
      return nil
    end
    return drop(id, 'ended already')
  elseif state == 'running' then
    return drop(id, 'runs already')
  elseif not state then
    if headers['sandfleet-recorded'] then
      return drop(id, 'ended so long ago that its record is gone')
    end
    redis.call('HSET', job, 'queue', queue, 'step', step, 'submitted', now, 'expires', 0, 'max_attempts', default_attempts)
  end

  local expires, flag = tonumber(facts[3] or 0), 'start'
  if redis.call('EXISTS', prefix .. 'cancel:' .. id) == 1 then
    flag = 'cancelled'
  elseif expires > 0 and now > expires then
    flag = 'expired'
  elseif facts[4] == host and now < tonumber(facts[5]) and is_other_host_alive() then
    return 'avoid'
  else
    local list = attempts == '' and {} or cjson.decode(attempts)
    list[#list + 1] = { host = host, worker = worker, started = now }
    attempts = cjson.encode(list)
  end
  redis.call('HSET', claims, claim, message)
  redis.call('HSET', job, 'state', 'running', 'claim', claim, 'owner', owner, 'flag', flag, 'attempts', attempts)
  redis.call('HDEL', job, 'message', 'avoid', 'avoid_until')
  redis.call('ZREM', prefix .. 'expiring', id)
  redis.call('ZREM', prefix .. 'delayed', id)
  return answer(id, message)
end

promote_delayed()
local found, avoided = nil, {}
for at = FIRST_QUEUE, #ARGV do
  local queue, is_empty = ARGV[at], true
  for _, step in ipairs({ '0', '3', '6', '9' }) do
    local list = list_of(queue, step)
    while not found and waste < MAX_WASTE and #avoided < MAX_AVOIDED do
      local message = redis.call('RPOP', list)
      if not message then
        break
      end
      is_empty = false
      local answered = take(queue, step, message)
      if answered == 'avoid' then
        avoided[#avoided + 1] = { list, message }
      else
        found = answered
      end
    end
  end
  if found or waste >= MAX_WASTE or #avoided >= MAX_AVOIDED then
    break
  end
  if is_empty then
    redis.call('SREM', prefix .. 'queues', queue)
  end
end
for at = #avoided, 1, -1 do
  redis.call('RPUSH', avoided[at][1], avoided[at][2])
end
return found or { waste > 0 and 'again' or 'none', set_aside_count }
