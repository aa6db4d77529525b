-- Take the next job off the queues and record it under its worker's lease, in one step.
--
-- ARGV: prefix, owner, claim id (new for each job, the same when a call is repeated because its answer got lost), host, worker,
--       facts of the worker as JSON, then the names of queues, whose turn it is first
-- The facts: max_attempts of jobs that do not say; boot, the id of its host's boot; holds_suspect; free, the bytes of memory that no job
-- on this host reserves (absent: no bound). placing.lua stands before this.
-- Returns {"lost"} without a lease, {"late"} where the lease has run out and may still be renewed, {"none"}, {"short"} where
-- a job waits for memory of this host, {"again"} where nothing but waste was found so far, or {"job", id, flag, message, queue,
-- attempts, max_attempts, run, for how many ms it is a suspect ("" it is none)}; the last two items of every answer that comes from the
-- queues are how many messages were set aside because they are malformed (no JSON, no usable id), and
-- how many of these were kept as dead letters. With the flag "start" the attempt is counted; "cancelled" and "expired" jobs are
-- handed out for their outcome only.
-- A suspect may have killed its worker (reap.lua). A worker that has one takes no other.
-- A forged key of a wrong type counts as empty. It does not stop the jobs of other keys.
--
-- A job that this host cannot take now is put back where it was, at the right end of its list, and its record says why. One that
-- waits for a label or a contract version that no live host has waits aside, in `delayed`, so that it stands in nobody's way.
-- So do those for another host that are more than MAX_OF_OTHERS in a list.
-- The first job of a list that could not be taken for want of memory, for KEEP_AFTER ms, gets it by keeps:<host>: while that key
-- lives, the host takes no other job but those of a smaller step in the same queue. One host at a time does so for a job, and only
-- as long as a claim of it comes upon the job: others may stand before it, or its worker may be dead.
local APART_MS, MAX_SUSPECT_MS, MAX_SUSPECTS_BACK = 500, 60000, 4
local FIRST_QUEUE, MAX_WASTE, MAX_PROMOTED, DEAD_TTL, WAKE_TTL = 7, 300, 64, 7 * 86400, 3600
local MAX_AVOIDED, MAX_AVOIDED_IN_ALL = 16, 64 -- jobs that are put back, of one list and of all, a call
local KEEP_AFTER, KEEP_FOR, WHY_AGAIN = 10000, 5000, 1000 -- ms
local MAX_OF_OTHERS = 12 -- jobs for another host that keep their place; less than MAX_AVOIDED, or they would hide those behind them
local ASIDE_MS, OF_OTHERS_MS, MAX_ASIDE = 2000, 200, 100000
local ASIDE_MS_EACH = 2 -- with so many aside that more than 500 would come back a second, each waits longer
local MAX_READ_BYTES = 4 * 1048576 -- of messages, a call: Redis serves nobody else meanwhile
local MAX_MALFORMED, MAX_MALFORMED_BYTES = 1000, 8192 -- malformed messages that are kept, and how much of each
local prefix, owner, claim, host, worker, me = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], cjson.decode(ARGV[6])
local default_attempts = string.format('%d', me.max_attempts)
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

-- Like redis.call, but nil where the key has a wrong type.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    return nil
  end
  return reply
end

local placing = new_placing(prefix, owner, now)
local waste, read_bytes, malformed, aside, put_back_suspects, of_others = 0, 0, {}, 0, 0, 0
local function answer(id, message)
  local facts = redis.call('HMGET', prefix .. 'job:' .. id, 'flag', 'queue', 'attempts', 'max_attempts', 'run', 'suspect_until')
  local ends = tonumber(facts[6] or '')
  local suspect_ms = ends and string.format('%d', math.max(0, ends - now)) or ''
  return { 'job', id, facts[1] or 'start', message, facts[2] or '', facts[3] or '', facts[4] or default_attempts, facts[5] or '1',
    suspect_ms }
end

local held = redis.pcall('HGET', claims, claim)
if type(held) == 'table' then -- an error: the key has a wrong type, and holds no claim
  redis.call('DEL', claims)
elseif held then
  local found = answer(cjson.decode(held).headers.id, held)
  found[#found + 1], found[#found + 2] = 0, 0
  return found
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
    -- The right end is where the next claim looks: the job has waited its turn already.
    if facts[1] and facts[2] and facts[3] and try('RPUSH', list_of(facts[2], facts[3]), facts[1]) then
      redis.call('HDEL', job, 'message')
      try('SADD', prefix .. 'queues', facts[2])
      is_any_new = is_any_new or not facts[4]
    end
  end
  -- What a host has put aside wakes nobody: thousands of them would keep all idle workers busy. These look by themselves.
  if is_any_new then
    try('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', '')
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
  waste = waste + 1
  malformed[#malformed + 1] = { queue, message, reason }
end

-- Returns how many more malformed messages may be kept: those that were purged since give their places back.
local function count_room()
  local key = prefix .. 'malformed'
  try('ZREMRANGEBYSCORE', key, '-inf', now - DEAD_TTL * 1000)
  if (try('ZCARD', key) or MAX_MALFORMED) >= MAX_MALFORMED then
    for _, id in ipairs(try('ZRANGE', key, 0, MAX_WASTE) or {}) do
      if redis.call('EXISTS', prefix .. 'dead:' .. id) == 0 then
        redis.call('ZREM', key, id)
      end
    end
  end
  return MAX_MALFORMED - (try('ZCARD', key) or MAX_MALFORMED)
end

-- Counts the malformed messages and keeps as many as there is room for; returns how many it kept.
local function keep_malformed()
  if #malformed == 0 then
    return 0
  end
  local counter, key, dead = prefix .. 'malformed_count', prefix .. 'malformed', prefix .. 'dead'
  local last = try('INCRBY', counter, #malformed)
  if not last then
    redis.call('SET', counter, #malformed)
    last = #malformed
  end
  redis.call('EXPIRE', counter, DEAD_TTL + 86400) -- longer than any letter: a number is never given twice
  local kept = math.max(0, math.min(#malformed, count_room()))
  for at = 1, kept do
    local queue, message, reason = unpack(malformed[at])
    if #message > MAX_MALFORMED_BYTES then
      reason = reason .. ' (the first ' .. MAX_MALFORMED_BYTES .. ' of ' .. #message .. ' bytes are kept)'
      message = message:sub(1, MAX_MALFORMED_BYTES)
    end
    local id = 'message-' .. string.format('%.0f', last - #malformed + at)
    redis.call('DEL', prefix .. 'dead:' .. id)
    redis.call('HSET', prefix .. 'dead:' .. id, 'message', message, 'reason', reason, 'code', '', 'at', now, 'queue', queue,
      'attempts', '')
    redis.call('EXPIRE', prefix .. 'dead:' .. id, DEAD_TTL)
    try('ZADD', dead, now, id)
    try('ZADD', key, now, id)
  end
  redis.call('EXPIRE', dead, DEAD_TTL)
  redis.call('EXPIRE', key, DEAD_TTL)
  return kept
end

local function drop(id, reason)
  waste = waste + 1
  try('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
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

-- Returns what is known of a job that may have killed its worker, or nil. It is no suspect, and its attempt is not charged, where the
-- host has come back with another boot id since: its power was cut.
local function find_suspect(text, attempts)
  if not text then
    return nil
  end
  local is_json, suspect = pcall(cjson.decode, text)
  if not is_json or type(suspect) ~= 'table' or type(suspect.host) ~= 'string' or not tonumber(suspect.ms) then
    return nil
  end
  local known = try('GET', prefix .. 'boot:' .. suspect.host)
  if suspect.boot == '' or not known or known == suspect.boot then
    return suspect
  end
  for at = #attempts, 1, -1 do
    local tried = attempts[at]
    if type(tried) == 'table' and tried.host == suspect.host and tried.boot == suspect.boot then
      tried.charged = false
      break
    end
  end
  return nil
end

local function tell_why(job, last, why)
  if now - (tonumber(last) or 0) >= WHY_AGAIN then
    redis.call('HSET', job, 'why', why, 'why_at', now)
  end
end

local keep_key = prefix .. 'keeps:' .. host
local kept -- the job that this host keeps its memory for
local function read_kept()
  local id = try('GET', keep_key)
  if not id then
    return nil
  end
  local facts = try('HMGET', prefix .. 'job:' .. id, 'state', 'queue', 'step') or {}
  if facts[1] ~= 'queued' or not facts[2] or not tonumber(facts[3]) then
    redis.call('DEL', keep_key)
    return nil
  end
  return { id = id, queue = facts[2], step = tonumber(facts[3]) }
end

local function is_kept_from(queue, step)
  return kept ~= nil and (queue ~= kept.queue or tonumber(step) > kept.step)
end

local function stop_keeping(id)
  if kept and kept.id == id then
    redis.call('DEL', keep_key)
    kept = nil
  end
end

-- Keeps this host's memory for the first such job of a list, if it has waited for long and no other host does so.
local function keep_for(id, queue, step, since, kept_by)
  local job = prefix .. 'job:' .. id
  if not since then
    redis.call('HSET', job, 'short_since', now)
  elseif not kept and now - (tonumber(since) or now) >= KEEP_AFTER and try('GET', prefix .. 'keeps:' .. (kept_by or '')) ~= id then
    redis.call('SET', keep_key, id, 'PX', KEEP_FOR)
    redis.call('HSET', job, 'kept_by', host)
    kept = { id = id, queue = queue, step = tonumber(step) }
  end
end

-- Takes a job out of its list for a while, `ms` at least.
local function set_aside_waiting(id, message, ms)
  local delayed = prefix .. 'delayed'
  local count = try('ZCARD', delayed) or MAX_ASIDE
  if count >= MAX_ASIDE or not try('ZADD', delayed, now + math.max(ms, ASIDE_MS_EACH * count), id) then
    return false
  end
  redis.call('HSET', prefix .. 'job:' .. id, 'message', message)
  aside = aside + 1
  return true
end

-- Puts a suspect back: this worker has one, and another worker may have none. The first few keep their place, so that another worker
-- finds them at once; more of them wait for a moment elsewhere, or they would keep this worker from the jobs behind them.
local function put_apart(id, message)
  put_back_suspects = put_back_suspects + 1
  local is_aside = put_back_suspects > MAX_SUSPECTS_BACK and set_aside_waiting(id, message, APART_MS)
  return is_aside and 'aside' or 'avoid'
end

-- Returns what hosts say of such needs: the obstacle "other" or "nobody" and why, or nil; what this host lacks; the needs.
local compared = {}
local function compare_hosts(queue, text)
  local key = queue .. ' ' .. text
  local known = compared[key] -- the jobs of a batch need the same
  if known then
    return unpack(known, 1, 4)
  end
  local needs = placing.read_json(text) or {}
  local kind, lack = placing.find_lack(owner, needs)
  local obstacle, why
  if kind and placing.has_other_host(needs, queue) then
    local verb = kind == 'ceiling' and ' does not let a job have' or ' does not have'
    obstacle, why = 'other', 'needs ' .. lack .. ', which ' .. host .. verb
  elseif kind == 'label' or kind == 'contract' then
    obstacle, why = 'nobody', placing.tell_nobody(needs, kind, lack)
  end
  compared[key] = { obstacle, why, kind, needs }
  return obstacle, why, kind, needs
end

-- Returns nil where this host can take the job now, or is the one to end it; else "other" where another host can, "short" where this
-- one can later and "nobody" where no live host has what it needs; and why.
local function find_obstacle(id, queue, step, text)
  local obstacle, why, kind, needs
  if text then
    obstacle, why, kind, needs = compare_hosts(queue, text)
  end
  if kind then
    stop_keeping(id)
  end
  if obstacle then
    return obstacle, why
  end
  if kept and kept.id ~= id and tonumber(step) >= kept.step then
    return 'short', host .. ' keeps its memory for job ' .. kept.id
  elseif not text or not me.free or kind == 'ceiling' then
    return nil
  end
  local own = placing.read_host(owner)
  local memory = tonumber(needs.memory_bytes) or (own and tonumber(own.ceilings.memory_bytes)) or 0
  if memory > me.free then
    if kept and kept.id == id then
      redis.call('PEXPIRE', keep_key, KEEP_FOR)
    end
    local wanted, free = placing.format_bytes(memory), placing.format_bytes(me.free)
    if wanted == free then -- but for a few bytes
      wanted, free = string.format('%.0f bytes', memory), string.format('%.0f bytes', me.free)
    end
    return 'short', 'needs ' .. wanted .. ' of memory, ' .. host .. ' has ' .. free .. ' free'
  end
  return nil
end

-- Returns what becomes of a job that meets an obstacle: "avoid", "short" or "aside".
local function put_back(id, message, obstacle)
  of_others = of_others + (obstacle == 'other' and 1 or 0)
  if obstacle == 'short' then
    return 'short'
  elseif obstacle == 'other' and of_others <= MAX_OF_OTHERS then
    return 'avoid'
  end
  return set_aside_waiting(id, message, obstacle == 'other' and OF_OTHERS_MS or ASIDE_MS) and 'aside' or 'avoid'
end

-- Returns the answer, "avoid" where another host shall take the job, "short" where this one shall later, "aside" where no live host
-- can, or nil for waste.
local function take(queue, step, message, is_first_short)
  local headers, reason = read_headers(message)
  if not headers then
    return set_aside(queue, message, reason)
  end
  local id = headers.id
  local job = prefix .. 'job:' .. id
  local facts = redis.call('HMGET', job, 'state', 'code', 'expires', 'avoid', 'avoid_until', 'attempts', 'suspect', 'needs', 'why_at',
    'short_since', 'kept_by')
  -- (an error of this read, or of any other call here, sets the message aside: see `take_safely`)
  local state, code, attempts = facts[1], facts[2], facts[6] or ''
  if state == 'ended' or redis.call('EXISTS', prefix .. 'celery-task-meta-' .. id) == 1 then
    if code == 'CANCELLED' or code == 'EXPIRED' then
      waste = waste + 1 -- it was ended in the queue, and its message had to stay there until now
      return nil
    end
    return drop(id, 'ended already')
  elseif state == 'running' or state == 'waiting' then
    return drop(id, 'runs already')
  elseif not state then
    if headers['sandfleet-recorded'] then
      return drop(id, 'ended so long ago that its record is gone')
    end
    redis.call('HSET', job, 'queue', queue, 'step', step, 'submitted', now, 'expires', 0, 'max_attempts', default_attempts)
  end

  local expires, flag, suspect_until = tonumber(facts[3]) or 0, 'start', nil
  if redis.call('EXISTS', prefix .. 'cancel:' .. id) == 1 then
    flag = 'cancelled'
  elseif expires > 0 and now > expires then
    flag = 'expired'
  elseif facts[4] == host and now < (tonumber(facts[5]) or 0) and is_other_host_alive() then
    return 'avoid'
  else
    local obstacle, why = find_obstacle(id, queue, step, facts[8])
    if obstacle then
      tell_why(job, facts[9], why)
      if obstacle == 'short' and is_first_short then
        keep_for(id, queue, step, facts[10], facts[11])
      end
      return put_back(id, message, obstacle)
    end
    local is_list, list = pcall(cjson.decode, attempts)
    list = is_list and type(list) == 'table' and list or {}
    local suspect = find_suspect(facts[7], list)
    if suspect and me.holds_suspect then
      tell_why(job, facts[9], 'may have killed its worker, and so may a job that ' .. worker .. ' runs now: such jobs do not run together')
      return put_apart(id, message)
    end
    suspect_until = suspect and now + math.min(MAX_SUSPECT_MS, suspect.ms)
    list[#list + 1] = { host = host, worker = worker, started = now, boot = me.boot }
    attempts = cjson.encode(list)
  end
  redis.call('HSET', claims, claim, message)
  redis.call('HSET', job, 'state', 'running', 'claim', claim, 'owner', owner, 'flag', flag, 'attempts', attempts)
  if suspect_until then
    redis.call('HSET', job, 'suspect_until', suspect_until)
  elseif facts[7] then
    redis.call('HDEL', job, 'suspect', 'suspect_until')
  end
  redis.call('HDEL', job, 'message', 'avoid', 'avoid_until', 'why', 'why_at', 'short_since', 'kept_by')
  stop_keeping(id)
  try('ZREM', prefix .. 'expiring', id)
  try('ZREM', prefix .. 'delayed', id)
  return answer(id, message)
end

local function take_safely(queue, step, message, is_first_short)
  local is_done, answered = pcall(take, queue, step, message, is_first_short)
  if is_done then
    return answered
  end
  -- The message is off its list: whatever is wrong with its record, it must not get lost.
  local why = type(answered) == 'table' and answered.err or answered
  return set_aside(queue, message, "its job's record in Redis cannot be used: " .. tostring(why))
end

local function is_enough()
  return waste >= MAX_WASTE or aside >= MAX_WASTE or read_bytes >= MAX_READ_BYTES
end

promote_delayed()
kept = read_kept()
local found, avoided, is_short = nil, {}, false
for at = FIRST_QUEUE, #ARGV do
  local queue, is_empty = ARGV[at], true
  for _, step in ipairs({ '0', '3', '6', '9' }) do
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
found = found or { (waste > 0 or is_enough()) and 'again' or is_short and 'short' or 'none' }
found[#found + 1], found[#found + 2] = #malformed, keep_malformed()
return found
