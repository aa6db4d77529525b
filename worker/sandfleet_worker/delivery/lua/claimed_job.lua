-- The record of a job whose message a claim has taken off its queue.
--
-- A part of claim.lua: uses its `prefix`, `owner`, `claim`, `claims`, `host`, `worker`, `me`, `now`,
-- `try` and `default_attempts`, and what unusable.lua, obstacles.lua, parked.lua and kept_specs.lua
-- define.

-- Returns those fields of a job's record that decide about a message of it.
local FACTS = { 'state', 'code', 'expires', 'avoid', 'avoid_until', 'attempts', 'suspect', 'needs', 'why_at', 'short_since',
  'kept_by', 'batch', 'step', 'parked', 'sha1' }
local function read_facts(job)
  local facts = {}
  for at, value in ipairs(redis.call('HMGET', job, unpack(FACTS))) do
    facts[FACTS[at]] = value
  end
  return facts
end

-- Drops the message of a job that has ended, runs, or is queued by another message; returns whether
-- it did. Makes the record of a job that stock Celery has sent.
local function drop_stale(headers, facts, queue, step, message)
  local id, state = headers.id, facts.state
  if state == 'ended' or redis.call('EXISTS', prefix .. 'celery-task-meta-' .. id) == 1 then
    if facts.code == 'CANCELLED' or facts.code == 'EXPIRED' then
      discarded = discarded + 1 -- it was ended in the queue, and its message had to stay there until now
      keep_ended(id, message)
    else
      drop(id, 'ended already')
    end
  elseif state == 'running' or state == 'waiting' then
    drop(id, 'runs already')
  elseif not state then
    if not headers['sandfleet-recorded'] then
      redis.call('HSET', prefix .. 'job:' .. id, 'queue', queue, 'step', step, 'submitted', now, 'expires', 0, 'max_attempts',
        default_attempts)
      return false
    end
    drop(id, 'ended so long ago that its record is gone')
  elseif facts.step and facts.step ~= step then
    discarded = discarded + 1 -- it has another priority since: a second message is in that list
  elseif facts.sha1 and facts.sha1 ~= redis.sha1hex(message) then
    drop(id, 'is of an earlier run') -- a priority left it behind
  else
    return false
  end
  return true
end

-- Returns a job's attempts with a new one, as JSON, and until when the job is a suspect, nil if it
-- is none. Returns nil if it is one and this worker has another.
local function add_attempt(facts)
  local is_list, list = pcall(cjson.decode, facts.attempts or '')
  list = is_list and type(list) == 'table' and list or {}
  local suspect = find_suspect(facts.suspect, list)
  if suspect and me.holds_suspect then
    return nil
  end
  list[#list + 1] = { host = host, worker = worker, started = now, boot = me.boot, slot = me.slot }
  return cjson.encode(list), suspect and now + math.min(MAX_SUSPECT_MS, suspect.ms)
end

-- Records that this claim has the job from now on.
local function record_claim(entry, limits, flag, attempts, suspect_until)
  local id, job, facts = entry.id, entry.job, entry.facts
  redis.call('HSET', claims, claim, entry.message)
  redis.call('HSET', job, 'state', 'running', 'claim', claim, 'owner', owner, 'flag', flag, 'attempts', attempts)
  if suspect_until then
    redis.call('HSET', job, 'suspect_until', suspect_until)
  elseif facts.suspect then
    redis.call('HDEL', job, 'suspect', 'suspect_until')
  end
  redis.call('HDEL', job, 'message', 'avoid', 'avoid_until', 'why', 'why_at', 'short_since', 'kept_by')
  if facts.parked then
    try('ZREM', prefix .. facts.parked, id)
    redis.call('HDEL', job, 'parked')
  end
  if limits and flag == 'start' then
    add_active(limits, id)
  end
  stop_keeping(id)
  try('ZREM', prefix .. 'expiring', id)
  try('ZREM', prefix .. 'delayed', id)
end
