-- Start the next run of ended jobs: queue each again as if it were submitted now, if its newest run
-- is the one that the caller saw.
--
-- ARGV: prefix, then 4 for each job (at most some hundred jobs): id; the run that the caller saw;
--       for a job whose record is gone what the record said, as JSON (queue_ttl in ms,
--       max_attempts, step, key, fingerprint, record, needs, batch; "": not given); and what the
--       next run changes, as JSON (message, and fields of the record: queue_ttl, max_attempts, step,
--       record, needs; "": nothing). After them, if given, which digest of its image the run has,
--       instead of that of the earlier run: "as_batch", the one that its batch has for the name;
--       "resolved", the one that the name means now, which is its batch's from now on
-- Returns for each job:
--   "queued"      it is queued again; no other answer changes anything
--   "later"       a later run has begun, or the job has not ended
--   "gone"        the record is gone, and was not given
--   "no message"  there is no message to run
--   "in queue"    it ended in the queue, where its message still is: see move_ended.lua
--   "unknown"     neither a record nor a dead letter exists
--   "unusable"    a key has a wrong type
-- The message is the changed one, or comes from the job's dead letter or its kept spec; both are
-- deleted. The earlier outcome moves to run:<number>:<id> and keeps its TTL. The digest of the
-- image that it ran is the field `pin` of the record.
local prefix = ARGV[1]
local FIRST, WIDTH, WAKE_TTL = 2, 4, 3600
-- include: prelude

-- include: batch_keys
-- include: webhooks
-- include: image_digest
-- include: parked
-- include: after
-- include: kept_specs
local images = (#ARGV - FIRST + 1) % WIDTH == 1 and ARGV[#ARGV] or 'kept'
local KEPT = { 'queue', 'step', 'batch', 'key', 'fingerprint', 'queue_ttl', 'max_attempts', 'record', 'needs', 'ended_by', 'pin', 'place',
  'after', 'awaited', 'relisted' }

local function read_record(job)
  local values = try('HMGET', job, 'state', 'run', 'code', 'end_entry', 'failed', 'in_queue', unpack(KEPT)) or {}
  local record = { state = values[1], run = values[2], code = values[3], end_entry = values[4], failed = values[5] or nil,
    in_queue = values[6] or nil }
  for at, name in ipairs(KEPT) do
    record[name] = values[at + 6] or nil
  end
  return record
end

local function drop_dead_letter(id)
  redis.call('DEL', prefix .. 'dead:' .. id)
  try('ZREM', prefix .. 'dead', id)
  local size = tonumber(try('HGET', prefix .. 'dead_sizes', id) or nil)
  if size then
    redis.call('HDEL', prefix .. 'dead_sizes', id)
    if redis.call('EXISTS', prefix .. 'dead_bytes') == 1 then -- DECRBY would create it without a TTL
      try('DECRBY', prefix .. 'dead_bytes', size)
    end
  end
end

-- Returns the idempotency key if it is the job's, and removes its TTL: it is kept until the run has
-- ended.
local function hold_key(id, key)
  if key == '' then
    return key
  end
  local holder = try('GET', prefix .. 'idem:' .. key)
  if holder and holder ~= id then
    return '' -- another job got it after this job's had expired
  end
  redis.call('SET', prefix .. 'idem:' .. key, id)
  return key
end

local function is_usable(list, keys)
  return try('LLEN', list) and try('ZCARD', prefix .. 'expiring')
    and (not keys or (try('LLEN', keys.members) and try('XLEN', keys.ends) and try('HLEN', keys.counts)))
end

-- Lifts the stop of the job's batch, and counts its failure no more.
local function note_retry(batch, failed)
  local limits = read_limits(batch)
  if limits then
    lift_stop(limits)
    watch_deadline(limits)
    if failed == (limits.round or '0') and (tonumber(try('HGET', limits.key, 'failures') or 0) or 0) > 0 then
      redis.call('HINCRBY', limits.key, 'failures', -1)
    end
  end
end

-- Returns why the next run of a job does not start, or nil.
local function find_refusal(record, run, seen, message, queue)
  if record.state and (record.state ~= 'ended' or run ~= seen) then
    return 'later'
  elseif record.in_queue then
    return 'in queue'
  elseif message == '' or queue == '' then
    return record.state and 'no message' or 'unknown'
  elseif run ~= seen then
    return 'later'
  end
  return nil
end

-- Returns the digest of the image that the earlier run had; nil if the next one is to look it up.
local function find_pin(id, record, dead_letter)
  if images ~= 'kept' then
    return nil
  end
  return dead_letter[4] or find_image_digest(try('GET', prefix .. 'celery-task-meta-' .. id)) or record.pin
end

-- Makes the outcome of the job that of run `run`, and takes its end out of the batch.
local function move_outcome(id, run, record, keys)
  local result = prefix .. 'celery-task-meta-' .. id
  if redis.call('EXISTS', result) == 1 then
    redis.call('RENAME', result, prefix .. 'run:' .. string.format('%.0f', run) .. ':' .. id)
  end
  if keys then
    take_end(keys, record.end_entry, record.code or '')
  end
end

local function write_record(id, run, record, message)
  local job, queue_ttl = prefix .. 'job:' .. id, tonumber(record.queue_ttl or 0) or 0
  local expires = queue_ttl > 0 and now + queue_ttl or 0
  -- The message's hash: an older message of the job may still be in a list, with another spec.
  local fields = { 'state', 'queued', 'run', string.format('%.0f', run), 'submitted', now, 'expires', expires, 'attempts', '',
    'sha1', redis.sha1hex(message) }
  for _, name in ipairs(KEPT) do
    if record[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = record[name]
    end
  end
  redis.call('DEL', job, prefix .. 'cancel:' .. id)
  redis.call('HSET', job, unpack(fields))
  if expires > 0 then
    redis.call('ZADD', prefix .. 'expiring', expires, id)
  end
end

local queues, batches = {}, {}
local function note_in_batch(id, record, keys, is_gone)
  if images == 'resolved' then
    redis.call('DEL', keys.pins)
  end
  if is_gone then
    redis.call('RPUSH', keys.members, id)
  end
  expire_batch(keys, BATCH_TTL)
  await_done(record.batch, keys)
  batches[record.batch] = true
  note_retry(record.batch, record.failed)
end

local function queue_message(id, record, list, message)
  if record.after then
    local group = new_group(record.after)
    park_in_group(group, id, message, record.step)
    resolve_group(group.name)
  else
    redis.call('LPUSH', list, message)
    queues[record.queue] = true
  end
end

local function start(id, seen, given, changes)
  local record = read_record(prefix .. 'job:' .. id)
  local dead_letter = try('HMGET', prefix .. 'dead:' .. id, 'message', 'queue', 'run', 'image_digest') or {}
  local message = changes.message or dead_letter[1] or try('GET', prefix .. 'spec:' .. id) or ''
  local queue = record.queue or dead_letter[2] or ''
  local run = tonumber(record.state and (record.run or 1) or dead_letter[3] or 1) or 1
  local refusal = find_refusal(record, run, seen, message, queue)
  if refusal then
    return refusal
  end
  local is_gone = not record.state
  if is_gone then
    if given == '' then
      return 'gone'
    end
    record = cjson.decode(given)
    record.relisted = '1' -- a reader of the members may find the job twice, and has to remember only such jobs
  end
  for name, value in pairs(changes) do
    record[name] = value
  end
  local step = record.step or '0'
  local keys = record.batch and record.batch ~= '' and batch_keys(record.batch)
  local list = prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
  if not is_usable(list, keys) then
    return 'unusable'
  end

  drop_dead_letter(id)
  drop_spec(id)
  record.pin = find_pin(id, record, dead_letter)
  move_outcome(id, run, record, keys)
  record.queue, record.step, record.key = queue, step, hold_key(id, record.key or '')
  write_record(id, run + 1, record, message)
  if keys then
    note_in_batch(id, record, keys, is_gone)
  end
  queue_message(id, record, list, message)
  return 'queued'
end

local answers = {}
for at = FIRST, #ARGV - WIDTH + 1, WIDTH do
  local changes = ARGV[at + 3] ~= '' and cjson.decode(ARGV[at + 3]) or {}
  answers[#answers + 1] = start(ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], changes)
end
for batch in pairs(batches) do
  list_batch(batch)
end
for queue in pairs(queues) do
  try('SADD', prefix .. 'queues', queue)
  try('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', queue)
  redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
end
return answers
