-- Record the end of a job's run, once: the outcome, the end in its batch, the dead letter; delete
-- the claim, and give all keys of the job a TTL. Keep the message of a run that did not end OK.
--
-- ARGV: prefix, owner, claim id, job id, code, result (Celery's record as JSON), TTL of the result
--       in s, reason of the dead letter ("": none), TTL of dead letters in s, message for the dead
--       letter if Redis has lost it ("": none), "droppable" if the result has output that the
--       caller may drop, summary of the run for the history, whole or without its beginning (see
--       ended_runs.lua; "" or absent: a caller of an earlier release, whose runs have no number)
-- A worker sends its owner and claim. With owner "", the job must still be queued: a producer or a
-- worker's sweep ends a job that no worker has claimed (CANCELLED, EXPIRED).
-- Returns 1 if it is recorded.
-- Returns 0 if the job is not the caller's: nothing is recorded, but an entry in `duplicates`.
-- Returns -1 if Redis is at maxmemory and the result is droppable: nothing is done, and the caller
-- sends the result without output.
-- A deleted claim is still the caller's while the job's record names it: a take-over writes another
-- one. A key of a wrong type does not stop the call.
local prefix, owner, claim, id, code, result = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local ttl, reason, dead_ttl = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local SETTLED_TTL, MAX_IMPORTED = 86400, 100
-- include: prelude
local job = prefix .. 'job:' .. id
local claims = prefix .. 'claims:' .. owner

-- At maxmemory Redis refuses a write that may need memory as the first write of a script. This ZADD
-- changes nothing. Its key is one that producers may write, too.
local function is_memory_full()
  local reply = redis.pcall('ZADD', prefix .. 'expiring', 'XX', 0, '')
  return type(reply) == 'table' and reply.err ~= nil and reply.err:find('OOM', 1, true) ~= nil
end
local is_full = (ARGV[11] == 'droppable' or code ~= 'OK') and is_memory_full()
if is_full and ARGV[11] == 'droppable' then
  return -1
end

-- include: batch_keys
-- include: webhooks
-- include: image_digest
-- include: parked
-- include: after
-- include: kept_specs
-- include: ended_runs
local facts = redis.pcall('HMGET', job, 'state', 'claim', 'owner', 'batch', 'key', 'attempts', 'flag', 'ended_by', 'run', 'parked',
  'awaited')
local is_record_wrong = facts.err ~= nil
if is_record_wrong then
  facts = {}
end

local message = ''
if owner == '' then
  if facts[1] ~= 'queued' then
    return 0
  end
  message = try('HGET', job, 'message') or '' -- while it waits for another attempt; else it is in the queue
else
  message = try('HGET', claims, claim)
  -- HDEL comes first: at maxmemory Redis refuses a write that may need memory only as the first
  -- write of a script. The outcome of a program that ran is recorded even then.
  try('HDEL', claims, claim)
  if is_record_wrong then
    redis.call('DEL', job)
  end
  if not message and (facts[1] == 'running' or facts[1] == 'waiting') and facts[2] == claim and facts[3] == owner then
    message = ARGV[10] or ''
  end
  if not message then
    -- The caller lost the answer and repeats a call that was done.
    if facts[8] == claim then
      return 1
    end
    -- One entry, however often the call is repeated. None for a late decision about a dead worker's
    -- job, since no run ended.
    local is_first = redis.call('SET', prefix .. 'settled:' .. claim, 'fenced', 'NX', 'EX', SETTLED_TTL)
    if is_first and claim:sub(1, 6) ~= 'taken-' then
      try('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
        'kind', 'outcome', 'code', code)
      redis.call('EXPIRE', prefix .. 'duplicates', dead_ttl)
    end
    return 0
  end
end

try('ZREM', prefix .. 'expiring', id) -- before any write that may need memory: a cancel works at maxmemory too
local key = prefix .. 'celery-task-meta-' .. id
redis.call('SET', key, result, 'EX', ttl)
-- As Celery's backend does: a stock `get` waits on a channel with the key's name.
redis.call('PUBLISH', key, result)

local batch, idempotency_key, attempts, run = facts[4] or '', facts[5] or '', facts[6] or '', facts[9] or '1'
if owner ~= '' and facts[7] == 'start' and attempts ~= '' then
  local is_list, list = pcall(cjson.decode, attempts)
  -- A job that has not started has no end of its own here; the end of an earlier attempt stays.
  if is_list and type(list) == 'table' and type(list[#list]) == 'table' and not list[#list].ended then
    list[#list].code, list[#list].ended = code, now
    redis.call('HSET', job, 'attempts', cjson.encode(list))
  end
end
redis.call('HSET', job, 'state', 'ended', 'code', code, 'ended', now, 'ended_by', claim)
redis.call('HDEL', job, 'message', 'claim', 'owner', 'flag')
if code ~= 'OK' and message ~= '' then
  if is_full then
    count_dropped_spec(ttl)
  else
    keep_spec(id, message, ttl)
  end
elseif owner == '' then
  redis.call('HSET', job, 'in_queue', '1') -- its message: whoever takes it off the queue keeps it
end
redis.call('EXPIRE', job, ttl)
try('ZREM', prefix .. 'delayed', id)
if facts[10] then
  try('ZREM', prefix .. facts[10], id)
  redis.call('HDEL', job, 'parked')
end
redis.call('DEL', prefix .. 'cancel:' .. id)
if (ARGV[12] or '') ~= '' then
  add_ended_run(complete_summary(ARGV[12], id, code, result), is_full)
end
if idempotency_key ~= '' then
  redis.call('EXPIRE', prefix .. 'idem:' .. idempotency_key, ttl)
end
if batch ~= '' then
  local keys = batch_keys(batch)
  -- The import may find the end of an earlier run of this job that an older worker recorded. It is
  -- imported as this end.
  if import_ends(keys, MAX_IMPORTED) == 0 or redis.call('HEXISTS', job, 'end_entry') == 0 then
    add_end(keys, id, run, code)
  end
  if run == '1' and try('RPUSH', keys.done, id) then -- after a later run the list has the id already
    add_count(keys, 'imported', 1)
  end
  if expire_batch(keys, ttl, true) then
    tell_if_done(batch, keys)
  end
  local limits = read_limits(batch)
  if limits then
    note_end(limits, id, code)
    if limits.awaited then
      resolve_awaiting('batch', batch)
    end
  end
end
if facts[11] then
  resolve_awaiting('job', id)
end
if reason ~= '' then
  local dead, sizes, bytes = prefix .. 'dead', prefix .. 'dead_sizes', prefix .. 'dead_bytes'
  local told = redis.call('HGET', job, 'attempts') or ''
  redis.call('DEL', dead .. ':' .. id)
  redis.call('HSET', dead .. ':' .. id, 'message', message, 'reason', reason, 'code', code, 'at', now, 'queue',
    redis.call('HGET', job, 'queue') or '', 'attempts', told, 'batch', batch, 'run', run)
  local digest = find_image_digest(result) or redis.call('HGET', job, 'pin')
  if digest then -- for the next run, which may begin when the result is gone
    redis.call('HSET', dead .. ':' .. id, 'image_digest', digest)
  end
  redis.call('EXPIRE', dead .. ':' .. id, dead_ttl)
  try('ZADD', dead, now, id)
  redis.call('EXPIRE', dead, dead_ttl)
  -- Only the sum is updated here. The caller runs drop_dead.lua next, which deletes dead letters
  -- above the bound.
  local size = #message + #reason + #told
  local earlier = tonumber(try('HGET', sizes, id) or 0) or 0
  try('HSET', sizes, id, size)
  try('INCRBY', bytes, size - earlier)
  redis.call('EXPIRE', sizes, dead_ttl)
  redis.call('EXPIRE', bytes, dead_ttl)
end
return 1
