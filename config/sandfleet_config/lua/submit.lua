-- Queue jobs, each at most once. If the queue is full, none is queued.
--
-- ARGV: prefix, queue, max_queued (0: no bound), batch ("": none), number of jobs that the caller
--       wants to queue in all, then 7 for each job (at most 2000 jobs, a bound of Lua's unpack):
--       id, message, idempotency key ("": none), fingerprint, "step queue_ttl max_attempts"
--       (0|3|6|9, ms or 0 for none, number) and, if the job waits for others, a space and `after`
--       as JSON, record, needs
-- Returns {"full", number of jobs in the queue}; {"new"} if all jobs are new; otherwise for each
-- job one of these, and an id:
--   "new"        it is queued; a job with any other answer is not
--   "same"       a job with the same idempotency key or id, and the same fingerprint, was submitted
--                before
--   "elsewhere"  the same, in another batch
--   "conflict"   the idempotency key belongs to a job with another fingerprint
--   "exists"     the id belongs to a job with another fingerprint
-- For a job that waits for others, two more answers; no job is then queued:
--   {"unknown", "job" or "batch", name}  nothing has that name
--   {"awaited", batch}                   others wait for the batch of this job
local prefix, queue, max_queued, batch, wanted = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local FIRST, WIDTH, WAKE_TTL = 6, 7, 3600
local count = (#ARGV - FIRST + 1) / WIDTH
-- include: prelude

-- include: batch_keys
-- include: parked
-- include: after
-- Returns kombu's name of a priority list; step 0 has the bare name.
local function list_of(step)
  return prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
end

-- Returns an error if a key has a wrong type. It is checked before anything is written: otherwise
-- jobs would be queued although the caller gets an error.
local function find_wrong_type()
  local wanted_types = { [prefix .. 'expiring'] = 'zset' }
  for _, step in ipairs({ '0', '3', '6', '9' }) do
    wanted_types[list_of(step)] = 'list'
  end
  if batch ~= '' then
    local keys = batch_keys(batch)
    wanted_types[keys.members], wanted_types[keys.done], wanted_types[keys.ends] = 'list', 'list', 'stream'
    wanted_types[keys.counts] = 'hash'
  end
  for name, kind in pairs(wanted_types) do
    local found = redis.call('TYPE', name).ok
    if found ~= kind and found ~= 'none' then
      return 'WRONGTYPE the key ' .. name .. ' is a ' .. found .. ', it must be a ' .. kind .. ': delete it'
    end
  end
end
local wrong = find_wrong_type()
if wrong then
  return redis.error_reply(wrong)
end

local function count_new()
  local found = 0
  for at = FIRST, #ARGV, WIDTH do
    local key = ARGV[at + 2]
    if (key == '' or redis.call('EXISTS', prefix .. 'idem:' .. key) == 0) and redis.call('EXISTS', prefix .. 'job:' .. ARGV[at]) == 0 then
      found = found + 1
    end
  end
  return found
end

local limits = batch ~= '' and read_limits(batch) or nil
if max_queued > 0 then
  local queued = limits and try('ZCARD', prefix .. 'parked:' .. batch) or 0
  for _, step in ipairs({ '0', '3', '6', '9' }) do
    queued = queued + redis.call('LLEN', list_of(step))
  end
  if queued + math.max(wanted, count) > max_queued then
    -- A batch that is submitted again needs room only for its new jobs.
    local new = count_new()
    if (new == count and queued + math.max(wanted, count) > max_queued) or (new > 0 and queued + new > max_queued) then
      return { 'full', queued }
    end
  end
end

-- In most submits all jobs are new. Two calls find that out for all of them; a check of each job
-- takes three.
local function are_all_new()
  local taken, marks, seen = {}, {}, {}
  for at = FIRST, #ARGV, WIDTH do
    local id, key = ARGV[at], ARGV[at + 2]
    local named, keyed = prefix .. 'job:' .. id, key ~= '' and prefix .. 'idem:' .. key
    if seen[named] or (keyed and seen[keyed]) then
      return false -- the same job twice in this submit
    end
    seen[named] = true
    taken[#taken + 1] = named
    taken[#taken + 1] = prefix .. 'celery-task-meta-' .. id
    marks[#marks + 1] = prefix .. 'cancel:' .. id -- set by a cancel before the submit: see cancel.lua
    if keyed then
      seen[keyed] = true
      taken[#taken + 1] = keyed
    end
  end
  return redis.call('EXISTS', unpack(taken)) == 0 and redis.call('EXISTS', unpack(marks)) == 0
end

local answers, is_any_new, is_all_new = {}, false, are_all_new()
local pushed, expiring, members, keyed_ids = { ['0'] = {}, ['3'] = {}, ['6'] = {}, ['9'] = {} }, {}, {}, {}
local function tell(kind, id)
  answers[#answers + 1] = kind
  answers[#answers + 1] = id
end

local deliveries = {}
local function read_delivery(text)
  if not deliveries[text] then
    local step, queue_ttl, max_attempts, after = text:match('^(%d) (%d+) (%d+) ?(.*)$')
    deliveries[text] = { step, tonumber(queue_ttl), max_attempts, after ~= '' and after or nil }
  end
  return unpack(deliveries[text], 1, 4)
end

local bar, groups = limits and find_bar(limits), {}
-- Returns the answer where a job waits for what does not exist, or would make a batch wait for
-- itself. Jobs that were submitted before are not checked again.
local function find_refusal()
  local last, checked
  for at = FIRST, #ARGV, WIDTH do
    local delivery, key = ARGV[at + 4], ARGV[at + 2]
    if delivery ~= last then
      last, checked = delivery, select(4, read_delivery(delivery))
    end
    if checked and redis.call('EXISTS', prefix .. 'job:' .. ARGV[at], prefix .. 'idem:' .. key) == 0 then
      local unknown = find_unknown(read_after(checked))
      if unknown then
        return { 'unknown', unknown.kind, unknown.name }
      elseif limits and limits.awaited then
        return { 'awaited', batch }
      end
      checked = nil -- the same for the next ones
    end
  end
end
local refusal = find_refusal()
if refusal then
  return refusal
end

local function queue_job(at)
  local id = ARGV[at]
  local step, queue_ttl, max_attempts, after = read_delivery(ARGV[at + 4])
  local expires = queue_ttl > 0 and now + queue_ttl or 0
  -- Without a TTL: a job's keys get one when it ends.
  redis.call('HSET', prefix .. 'job:' .. id, 'state', 'queued', 'queue', queue, 'step', step, 'batch', batch,
    'key', ARGV[at + 2], 'fingerprint', ARGV[at + 3], 'expires', expires, 'queue_ttl', queue_ttl, 'max_attempts', max_attempts,
    'record', ARGV[at + 5], 'needs', ARGV[at + 6])
  if expires > 0 then
    expiring[#expiring + 1] = expires
    expiring[#expiring + 1] = id
  end
  members[#members + 1] = id
  is_any_new = true
  if after then
    groups[after] = groups[after] or new_group(after)
    redis.call('HSET', prefix .. 'job:' .. id, 'after', after)
    park_in_group(groups[after], id, ARGV[at + 1], step)
  elseif limits and (limits.at_most or bar) then
    park_in_batch(limits, id, ARGV[at + 1], step, bar or describe_at_most(limits))
  else
    pushed[step][#pushed[step] + 1] = ARGV[at + 1]
  end
end

-- Queues a job unless it is known, and adds the answer.
local function check_and_queue(at)
  local id, key, fingerprint = ARGV[at], ARGV[at + 2], ARGV[at + 3]
  -- A key of a wrong type does not stop the submit: an idempotency key counts as free, a record as
  -- another job's.
  local keyed = key ~= '' and redis.pcall('GET', prefix .. 'idem:' .. key)
  if type(keyed) == 'table' then
    keyed = false
  end
  local facts = redis.pcall('HMGET', prefix .. 'job:' .. (keyed or id), 'fingerprint', 'batch')
  local known = facts.err and '' or facts[1]
  if known == fingerprint then
    tell(facts[2] == batch and 'same' or 'elsewhere', keyed or id)
  elseif known and keyed then
    tell('conflict', keyed)
  elseif known or redis.call('EXISTS', prefix .. 'job:' .. id, prefix .. 'celery-task-meta-' .. id) > 0 then
    tell('exists', id)
  else
    queue_job(at)
    redis.call('DEL', prefix .. 'cancel:' .. id) -- not the first write: see finish.lua
    if key ~= '' then
      redis.call('SET', prefix .. 'idem:' .. key, id)
    end
    tell('new', id)
  end
end

for at = FIRST, #ARGV, WIDTH do
  if not is_all_new then
    check_and_queue(at)
  else
    queue_job(at)
    if ARGV[at + 2] ~= '' then
      keyed_ids[#keyed_ids + 1] = prefix .. 'idem:' .. ARGV[at + 2]
      keyed_ids[#keyed_ids + 1] = ARGV[at]
    end
  end
end
if #keyed_ids > 0 then
  redis.call('MSET', unpack(keyed_ids))
end
if is_any_new then
  for step, messages in pairs(pushed) do
    if #messages > 0 then
      redis.call('LPUSH', list_of(step), unpack(messages))
    end
  end
  if #expiring > 0 then
    redis.call('ZADD', prefix .. 'expiring', unpack(expiring))
  end
  if batch ~= '' then
    local keys = batch_keys(batch)
    redis.call('RPUSH', keys.members, unpack(members))
    redis.call('HDEL', keys.counts, 'sealed')
    drop_forgotten(keys, 2 * #members + 4, true) -- more than the batch grows by
    expire_batch(keys, BATCH_TTL)
    list_batch(batch)
  end
  if limits then
    redis.call('EXPIRE', limits.key, PARKED_TTL)
    watch_deadline(limits)
    let_go_free(limits, true)
  end
  for _, group in pairs(groups) do
    resolve_group(group.name)
  end
  redis.pcall('SADD', prefix .. 'queues', queue) -- these may fail: the jobs are queued, and workers poll the queues
  -- Idle workers block on this stream; one entry is enough to wake them all.
  redis.pcall('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', queue)
  redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
end
return is_all_new and { 'new' } or answers
