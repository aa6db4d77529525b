-- Functions for jobs that wait for other jobs or batches (`after`). A script includes them by the
-- line "-- include: after", after batch_keys and parked.
--
-- Jobs whose `after` is the same text are a group; its name is the SHA-1 of the text.
-- after:<group>         hash: after (JSON with jobs and batches), next (the next place), and "ok
--                       <kind> <name>" for each of them that has ended OK
-- awaiting:<group>      sorted set of its jobs, which are parked
-- awaited:<kind>:<name> set of the groups that wait for a job or a batch (kind "job" or "batch")
-- groups                sorted set: group -> when a sweep checks it next (ms)
-- Invariant: a job that waits joins no batch that others wait for. So nothing can wait for itself.
local MAX_RESOLVED = 20 -- groups that one call resolves; a sweep finds the others

local function read_after(text)
  local is_json, found = pcall(cjson.decode, text or '')
  found = is_json and type(found) == 'table' and found or {}
  local targets = {}
  for _, kind in ipairs({ 'batch', 'job' }) do
    local names = found[kind == 'job' and 'jobs' or 'batches']
    for _, name in ipairs(type(names) == 'table' and names or {}) do
      targets[#targets + 1] = { kind = kind, name = tostring(name) }
    end
  end
  return targets
end

-- Returns the first of the targets that does not exist, or nil.
local function find_unknown(targets)
  for _, target in ipairs(targets) do
    local key = prefix .. (target.kind == 'job' and 'job:' or 'batch:') .. target.name
    if redis.call('EXISTS', key) == 0 then
      return target
    end
  end
end

local function describe_targets(targets)
  local names = {}
  for at = 1, math.min(3, #targets) do
    names[at] = targets[at].kind .. ' ' .. targets[at].name
  end
  if #targets > 3 then
    names[4] = string.format('%d more', #targets - 3)
  end
  return 'waits until ' .. table.concat(names, ', ') .. (#targets > 1 and ' have' or ' has') .. ' ended OK (after)'
end

-- Marks a job or a batch as one that others wait for.
local function mark_awaited(target)
  if target.kind == 'batch' then
    try('HSET', prefix .. 'limits:' .. target.name, 'awaited', 1, 'set', 1)
    expire_limits(target.name)
  elseif redis.call('EXISTS', prefix .. 'job:' .. target.name) == 1 then
    try('HSET', prefix .. 'job:' .. target.name, 'awaited', 1)
  end
end

-- Makes the group of an `after`; returns it.
local function new_group(text)
  local group = { name = redis.sha1hex(text), targets = read_after(text) }
  group.key, group.where, group.why = prefix .. 'after:' .. group.name, 'awaiting:' .. group.name, describe_targets(group.targets)
  redis.call('HSET', group.key, 'after', text)
  redis.call('EXPIRE', group.key, PARKED_TTL)
  for _, target in ipairs(group.targets) do
    local key = prefix .. 'awaited:' .. target.kind .. ':' .. target.name
    redis.call('SADD', key, group.name)
    redis.call('EXPIRE', key, PARKED_TTL)
    mark_awaited(target)
  end
  schedule('groups', now, group.name)
  return group
end

local function park_in_group(group, id, message, step)
  local place = redis.call('HINCRBY', group.key, 'next', 1)
  park(id, message, group.where, tonumber(step) * PLACES + place, group.why)
  redis.call('EXPIRE', prefix .. group.where, PARKED_TTL)
end

local function drop_group(name, targets)
  for _, target in ipairs(targets) do
    local key = prefix .. 'awaited:' .. target.kind .. ':' .. target.name
    try('SREM', key, name)
    if redis.call('EXISTS', key) == 0 then
      try('HDEL', prefix .. (target.kind == 'job' and 'job:' or 'limits:') .. target.name, 'awaited')
    end
  end
  redis.call('DEL', prefix .. 'after:' .. name)
  try('ZREM', prefix .. 'groups', name)
end

-- Returns "ok", "wait" or "failed", and for "failed" why.
local function check_job(id)
  local facts = try('HMGET', prefix .. 'job:' .. id, 'state', 'code') or {}
  if not facts[1] then
    return 'failed', 'job ' .. id .. ' is not known any more'
  elseif facts[1] ~= 'ended' then
    return 'wait'
  elseif facts[2] == 'OK' then
    return 'ok'
  end
  return 'failed', 'job ' .. id .. ' ended with ' .. (facts[2] or '?')
end

local function check_batch(name)
  local keys = batch_keys(name)
  import_ends(keys, 1000)
  local total, ended = count_jobs(keys)
  if total == 0 then
    return 'failed', 'batch ' .. name .. ' is not known any more'
  end
  local counts, is_sealed = try('HGETALL', keys.counts) or {}, false
  for at = 1, #counts, 2 do
    local field, count = counts[at], tonumber(counts[at + 1]) or 0
    if field == 'sealed' then
      is_sealed = true
    elseif field ~= 'OK' and field:match('^[A-Z_]+$') and count > 0 then
      return 'failed', string.format('of batch %s %d %s ended with %s', name, count, count == 1 and 'job has' or 'jobs have', field)
    end
  end
  return is_sealed and ended >= total and 'ok' or 'wait'
end

-- Checks all that a group waits for. What has ended OK stays so: its record may expire before the
-- others end.
local function check_group(name, targets)
  local is_waiting = false
  for _, target in ipairs(targets) do
    local mark = 'ok ' .. target.kind .. ' ' .. target.name
    if not try('HGET', prefix .. 'after:' .. name, mark) then
      local found, why
      if target.kind == 'job' then
        found, why = check_job(target.name)
      else
        found, why = check_batch(target.name)
      end
      if found == 'failed' then
        return found, 'cancelled before it started: ' .. why .. ', and it was to start after that had ended OK'
      elseif found == 'ok' then
        redis.call('HSET', prefix .. 'after:' .. name, mark, 1)
      else
        is_waiting = true
      end
    end
  end
  return is_waiting and 'wait' or 'ok'
end

-- Checks a group and lets its jobs go if all is ready. Returns "wait", "more" (jobs are left to be
-- let go), "failed" and why, or "done".
local function resolve_group(name)
  local where = 'awaiting:' .. name
  local targets = read_after(try('HGET', prefix .. 'after:' .. name, 'after') or nil)
  if (try('ZCARD', prefix .. where) or 0) == 0 then
    drop_group(name, targets)
    return 'done'
  end
  local found, why = check_group(name, targets)
  if found == 'ok' and let_go(where, MAX_LET_GO, 'LPUSH') < MAX_LET_GO then
    drop_group(name, targets)
    return 'done'
  elseif found ~= 'wait' then
    schedule('groups', now, name)
  end
  return found == 'ok' and 'more' or found, why
end

-- Resolves the groups that wait for a job or a batch, of which something has changed. A batch that
-- only has one more end changes nothing for them, however many they are.
local function resolve_awaiting(kind, name)
  local key, found = prefix .. 'awaited:' .. kind .. ':' .. name, nil
  if kind == 'batch' then
    found = check_batch(name)
  end
  if found == 'wait' then
    return
  elseif found == 'failed' then
    -- Each later end comes here too: a sweep finds those that are more.
    for _, group in ipairs(try('SRANDMEMBER', key, MAX_RESOLVED) or {}) do
      resolve_group(group)
    end
    return
  end
  for at, group in ipairs(try('SMEMBERS', key) or {}) do
    if at > MAX_RESOLVED then
      schedule('groups', now, group)
    else
      resolve_group(group)
    end
  end
end
