-- Record how a run of a job ended, once: outcome, end in its batch, the end of its claim and the TTL of its keys in one step.
--
-- ARGV: prefix, owner, claim id, job id, code, result (Celery's record as JSON), result_ttl in s, reason for the dead letters
--       ("" none), ttl of dead letters in s, message for the dead letters where Redis has lost it ("" none), "droppable" where the
--       result has output that the caller may drop
-- A worker gives its owner and claim. With owner "" the job must still be queued: a producer, or a worker's sweep, ends a job
-- that nobody has claimed (CANCELLED, EXPIRED).
-- Returns 1, or 0 where the job is not the caller's (any more): then nothing is recorded but a line in the duplicates log.
-- Returns -1, and has done nothing, where Redis is at maxmemory and the result is droppable: the caller sends it without output.
-- A claim that was deleted is still the caller's while the job's record names it: a take-over writes another one there.
-- A forged key of a wrong type does not stop the call: the outcome is recorded all the same.
local prefix, owner, claim, id, code, result = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local ttl, reason, dead_ttl = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local SETTLED_TTL, MAX_IMPORTED = 86400, 100
-- include: prelude
local job = prefix .. 'job:' .. id
local claims = prefix .. 'claims:' .. owner

-- At maxmemory Redis refuses a write that may need memory, where it is a script's first. This one changes nothing.
local function is_memory_full()
  local reply = redis.pcall('ZADD', prefix .. 'owners', 'XX', 0, '')
  return type(reply) == 'table' and reply.err ~= nil and reply.err:find('OOM', 1, true) ~= nil
end
if ARGV[11] == 'droppable' and is_memory_full() then
  return -1
end

-- include: batch_keys
local facts = redis.pcall('HMGET', job, 'state', 'claim', 'owner', 'batch', 'key', 'attempts', 'flag', 'ended_by', 'run')
local is_record_wrong = facts.err ~= nil
if is_record_wrong then
  facts = {}
end

local message = ''
if owner == '' then
  if facts[1] ~= 'queued' then
    return 0
  end
else
  message = try('HGET', claims, claim)
  -- At maxmemory Redis refuses a write that may need memory only where it is a script's first. What has run is recorded.
  try('HDEL', claims, claim)
  if is_record_wrong then
    redis.call('DEL', job)
  end
  if not message and (facts[1] == 'running' or facts[1] == 'waiting') and facts[2] == claim and facts[3] == owner then
    message = ARGV[10] or ''
  end
  if not message then
    -- The caller repeats what was done, since the answer got lost.
    if facts[8] == claim then
      return 1
    end
    -- One line however often the call is repeated; none where no run ended, but a decision about a dead worker's job came late.
    local is_first = redis.call('SET', prefix .. 'settled:' .. claim, 'fenced', 'NX', 'EX', SETTLED_TTL)
    if is_first and claim:sub(1, 6) ~= 'taken-' then
      try('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
        'kind', 'outcome', 'code', code)
      redis.call('EXPIRE', prefix .. 'duplicates', dead_ttl)
    end
    return 0
  end
end

try('ZREM', prefix .. 'expiring', id) -- before any write that may need memory: a job that was cancelled ends at maxmemory too
local key = prefix .. 'celery-task-meta-' .. id
redis.call('SET', key, result, 'EX', ttl)
-- Celery's own backend publishes the record on a channel of the key's name: a stock `get` waits there.
redis.call('PUBLISH', key, result)

local batch, idempotency_key, attempts, run = facts[4] or '', facts[5] or '', facts[6] or '', facts[9] or '1'
if owner ~= '' and facts[7] == 'start' and attempts ~= '' then
  local is_list, list = pcall(cjson.decode, attempts)
  -- An earlier attempt's end stays as it is: a job that waits for its start has no other.
  if is_list and type(list) == 'table' and type(list[#list]) == 'table' and not list[#list].ended then
    list[#list].code, list[#list].ended = code, now
    redis.call('HSET', job, 'attempts', cjson.encode(list))
  end
end
redis.call('HSET', job, 'state', 'ended', 'code', code, 'ended', now, 'ended_by', claim)
redis.call('HDEL', job, 'message', 'claim', 'owner', 'flag')
redis.call('EXPIRE', job, ttl)
try('ZREM', prefix .. 'delayed', id)
redis.call('DEL', prefix .. 'cancel:' .. id)
if idempotency_key ~= '' then
  redis.call('EXPIRE', prefix .. 'idem:' .. idempotency_key, ttl)
end
if batch ~= '' then
  local keys = batch_keys(batch)
  -- An older worker's end of an earlier run of this job may have come here only now: it is imported as this end.
  if import_ends(keys, MAX_IMPORTED) == 0 or redis.call('HEXISTS', job, 'end_entry') == 0 then
    add_end(keys, id, run, code)
  end
  if run == '1' and try('RPUSH', keys.done, id) then -- of a later run the list has the id already
    add_count(keys, 'imported', 1)
  end
  expire_batch(keys, ttl, true)
end
if reason ~= '' then
  local dead, sizes, bytes = prefix .. 'dead', prefix .. 'dead_sizes', prefix .. 'dead_bytes'
  local told = redis.call('HGET', job, 'attempts') or ''
  redis.call('DEL', dead .. ':' .. id)
  redis.call('HSET', dead .. ':' .. id, 'message', message, 'reason', reason, 'code', code, 'at', now, 'queue',
    redis.call('HGET', job, 'queue') or '', 'attempts', told, 'batch', batch, 'run', run)
  redis.call('EXPIRE', dead .. ':' .. id, dead_ttl)
  try('ZADD', dead, now, id)
  redis.call('EXPIRE', dead, dead_ttl)
  -- The sum of sizes is kept here; drop_dead.lua, which the caller runs next, holds it to its bound.
  local size = #message + #reason + #told
  local earlier = tonumber(try('HGET', sizes, id) or 0) or 0
  try('HSET', sizes, id, size)
  try('INCRBY', bytes, size - earlier)
  redis.call('EXPIRE', sizes, dead_ttl)
  redis.call('EXPIRE', bytes, dead_ttl)
end
return 1
