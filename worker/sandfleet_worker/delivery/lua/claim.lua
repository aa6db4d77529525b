-- Take the next job off the queues and record it under its worker's lease, in one step.
--
-- ARGV: prefix, owner, claim id (new for each job, the same when a call is repeated because its
--       answer got lost), host, worker, facts of the worker as JSON, then the names of queues, in
--       the order in which they are looked at
-- The facts: max_attempts of jobs that do not say; boot, the id of its host's boot; holds_suspect;
-- slot, the number of the slot that the job gets; free, the bytes of memory that no job on this host
-- reserves (absent: no bound).
-- Returns one of
--   {"lost"}   without a lease
--   {"late"}   where the lease has run out and may still be renewed
--   {"cordoned"}  where an operator has marked the host: it starts no job
--   {"none"}   where there is no job
--   {"short"}  where a job waits for memory of this host
--   {"again"}  where only unusable messages were found so far
--   {"job", id, flag, message, queue, attempts, max_attempts, run, for how many ms it is a suspect
--              ("" it is none)}
-- An answer that comes from the queues has two more items: how many malformed messages (no JSON, no
-- usable id) were set aside, and how many of these were kept as dead letters. With the flag "start"
-- the attempt is counted; "cancelled" and "expired" jobs are handed out for their outcome only.
-- A suspect may have killed its worker (reap.lua). A worker that has one takes no other.
-- A forged key of a wrong type counts as empty. It does not stop the jobs of other keys.
-- A job of a batch that is held, has stopped, or runs as many jobs as it may, is parked: see
-- parked.lua. The parts: placing.lua compares hosts, obstacles.lua says why this host cannot take a
-- job now, unusable.lua keeps what is no job, and claimed_job.lua reads and writes a job's record.
local FIRST_QUEUE, MAX_DISCARDED, MAX_PROMOTED, WAKE_TTL, MAX_SUSPECT_MS = 7, 300, 64, 3600, 60000
local MAX_AVOIDED, MAX_AVOIDED_IN_ALL = 16, 64 -- jobs that are put back, of one list and of all, a call
local MAX_READ_BYTES = 4 * 1048576 -- of messages, a call: Redis serves no other client meanwhile
local prefix, owner, claim, host, worker, me = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], cjson.decode(ARGV[6])
local default_attempts = string.format('%d', me.max_attempts)
-- include: prelude
-- include: placing
-- include: parked
local claims = prefix .. 'claims:' .. owner

local lease = redis.call('ZSCORE', prefix .. 'owners', owner)
if not lease then
  return { 'lost' }
elseif tonumber(lease) < now then
  return { 'late' }
end
-- Changes nothing, but is a write that Redis refuses at maxmemory: running jobs end then, and none
-- starts.
redis.call('ZADD', prefix .. 'owners', 'XX', lease, owner)

local placing = new_placing(prefix, owner, now)
local read_bytes = 0
local function answer(id, message)
  local facts = redis.call('HMGET', prefix .. 'job:' .. id, 'flag', 'queue', 'attempts', 'max_attempts', 'run', 'suspect_until')
  local expires = tonumber(facts[6] or '')
  local suspect_ms = expires and string.format('%d', math.max(0, expires - now)) or ''
  return { 'job', id, facts[1] or 'start', message, facts[2] or '', facts[3] or '', facts[4] or default_attempts, facts[5] or '1',
    suspect_ms }
end

local kept_message = redis.pcall('HGET', claims, claim)
if type(kept_message) == 'table' then -- an error: the key has a wrong type, and holds no claim
  redis.call('DEL', claims)
elseif kept_message then
  local found = answer(cjson.decode(kept_message).headers.id, kept_message)
  found[#found + 1], found[#found + 2] = 0, 0
  return found
end

-- A claim that was made before its host was marked is handed out above: its answer may have got lost.
local has_marks = redis.call('EXISTS', prefix .. 'cordons', prefix .. 'paused') > 0
if has_marks and try('HEXISTS', prefix .. 'cordons', host) == 1 then
  return { 'cordoned', 0, 0 }
end

local function is_paused(queue)
  return has_marks and try('HEXISTS', prefix .. 'paused', queue) == 1
end

local function list_of(queue, step)
  return prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
end

local function promote_delayed()
  local due = try('ZRANGEBYSCORE', prefix .. 'delayed', '-inf', now, 'LIMIT', 0, MAX_PROMOTED) or {}
  local is_any_new = false
  for _, id in ipairs(due) do
    redis.call('ZREM', prefix .. 'delayed', id)
    local job = prefix .. 'job:' .. id
    local facts = try('HMGET', job, 'message', 'queue', 'step', 'why') or {}
    -- At the right end, where the next claim takes it: the job has waited already.
    if facts[1] and facts[2] and facts[3] and try('RPUSH', list_of(facts[2], facts[3]), facts[1]) then
      redis.call('HDEL', job, 'message')
      try('SADD', prefix .. 'queues', facts[2])
      is_any_new = is_any_new or not facts[4]
    end
  end
  -- Jobs that a host has put aside wake no worker: thousands of them would keep all idle workers
  -- busy, and these poll anyway.
  if is_any_new then
    try('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', '')
    redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
  end
end

-- include: unusable
-- include: obstacles
-- include: kept_specs
-- include: claimed_job

-- Returns the limits of a batch, and why none of its jobs may start; both nil where there is
-- nothing.
local bars = {}
local function find_limits(batch)
  if not batch or batch == '' then
    return nil
  elseif not bars[batch] then
    local limits = read_limits(batch)
    bars[batch] = { limits, limits and find_bar(limits) }
  end
  return unpack(bars[batch], 1, 2)
end

-- Takes a job that may not start off the queues until its batch lets it go.
local function park_barred(limits, bar, id, message, step)
  aside = aside + 1
  stop_keeping(id)
  park_in_batch(limits, id, message, step, bar)
  return 'aside'
end

-- Puts a job back that this host cannot take now, and says why; returns what `take` does, or nil
-- where the host can take it.
local function put_back_obstructed(entry, limits, is_first_short)
  local id, facts = entry.id, entry.facts
  local obstacle, why = find_obstacle(id, entry.queue, entry.step, facts.needs)
  if not obstacle then
    return nil
  end
  tell_why(entry.job, facts.why_at, why)
  if obstacle == 'short' and is_first_short then
    keep_for(id, entry.queue, entry.step, facts.short_since, facts.kept_by)
  end
  local answered = put_back(id, entry.message, obstacle)
  if answered == 'aside' and limits and limits.at_most then
    free_place(limits, id) -- others of its batch may start meanwhile
  end
  return answered
end

-- Returns the answer, "avoid" where another host is to take the job, "short" where this one is to
-- later, "aside" where no live host can, or nil for an unusable message.
local function take(queue, step, message, is_first_short)
  local headers, reason = read_headers(message)
  if not headers then
    return set_aside(queue, message, reason)
  end
  local id = headers.id
  local job = prefix .. 'job:' .. id
  -- (an error of this read, or of any other call here, sets the message aside: see `take_safely`)
  local facts = read_facts(job)
  if drop_stale(headers, facts, queue, step, message) then
    return nil
  end
  local entry = { id = id, job = job, facts = facts, queue = queue, step = step, message = message }
  local limits, bar = find_limits(facts.batch)
  local expires, flag, attempts, suspect_until = tonumber(facts.expires) or 0, 'start', facts.attempts or '', nil
  if redis.call('EXISTS', prefix .. 'cancel:' .. id) == 1 then
    flag = 'cancelled'
  elseif expires > 0 and now > expires then
    flag = 'expired'
  elseif facts.avoid == host and now < (tonumber(facts.avoid_until) or 0) and placing.is_other_host_alive(host) then
    return 'avoid'
  elseif bar then
    return park_barred(limits, bar, id, message, step)
  elseif limits and not take_place(limits, id) then
    return park_barred(limits, describe_at_most(limits), id, message, step)
  else
    local answered = put_back_obstructed(entry, limits, is_first_short)
    if answered then
      return answered
    end
    attempts, suspect_until = add_attempt(facts)
    if not attempts then
      tell_why(job, facts.why_at, 'may have killed its worker, and so may a job that ' .. worker .. ' runs now: such jobs do not run together')
      return put_apart(id, message)
    end
  end
  record_claim(entry, limits, flag, attempts, suspect_until)
  return answer(id, message)
end

local function take_safely(queue, step, message, is_first_short)
  local is_done, answered = pcall(take, queue, step, message, is_first_short)
  if is_done then
    return answered
  end
  -- The message is off its list already, and must not get lost with its record.
  local why = type(answered) == 'table' and answered.err or answered
  return set_aside(queue, message, "its job's record in Redis cannot be used: " .. tostring(why))
end

local function is_enough()
  return discarded >= MAX_DISCARDED or aside >= MAX_DISCARDED or read_bytes >= MAX_READ_BYTES
end

promote_delayed()
kept = read_kept()
local found, avoided, is_short = nil, {}, false
for at = FIRST_QUEUE, #ARGV do
  local queue, is_empty, steps = ARGV[at], true, { '0', '3', '6', '9' }
  if is_paused(queue) then
    is_empty, steps = false, {}
  end
  for _, step in ipairs(steps) do
    local list, count, has_short = list_of(queue, step), 0, false
    of_others = 0
    while not found and not is_enough() and count < MAX_AVOIDED and #avoided < MAX_AVOIDED_IN_ALL
      and not is_kept_from(queue, step) do
      local message = try('RPOP', list)
      if not message then
        break
      end
      is_empty, read_bytes = false, read_bytes + #message
      local answered = take_safely(queue, step, message, not has_short)
      if answered == 'avoid' or answered == 'short' then
        avoided[#avoided + 1] = { list, message }
        count, has_short = count + 1, has_short or answered == 'short'
      elseif answered ~= 'aside' then
        found = answered
      end
    end
    is_short = is_short or has_short
  end
  if found or is_enough() or #avoided >= MAX_AVOIDED_IN_ALL then
    break
  end
  if is_empty and not kept then
    try('SREM', prefix .. 'queues', queue)
  end
end
for at = #avoided, 1, -1 do
  redis.call('RPUSH', avoided[at][1], avoided[at][2])
end
found = found or { (discarded > 0 or is_enough()) and 'again' or is_short and 'short' or 'none' }
found[#found + 1], found[#found + 2] = #malformed, keep_malformed()
return found
