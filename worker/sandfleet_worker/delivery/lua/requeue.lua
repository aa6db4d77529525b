-- Give a claimed job back to its queue: for another try, or because its worker stops.
--
-- ARGV: prefix, owner, claim id, job id, mode, code, delay in ms, host to avoid ("" none), for how
--       long in ms, message; of mode "putback" also why (a text for people), what the job needs
--       (JSON, "" where it is not known), and its queue_ttl in ms; of mode "retry", optional, also
--       "" and what the next attempt needs
-- An attempt that goes on ends with `code`: mode "retry" charges it to the job, "release" does not.
-- In the modes "free" and "putback" the job has not started, and there was none; "putback" says
-- why. An attempt that has ended stays as it is. Time in the queue is counted over all its waits:
-- that of a run is not in it, and it does not start anew. The record of a job that a stock producer
-- sent gets its queue_ttl here: a day, if the caller does not say another.
-- Returns 1, or 0 where the claim is not the caller's (any more): then nothing changes but for a
-- line in the duplicates log. A claim that was deleted is still the caller's while the job's record
-- names it: a take-over writes another one there. Errors for a queue whose key has a wrong type,
-- and changes nothing: the job stays claimed.
local prefix, owner, claim, id, mode, code = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local WAKE_TTL, SETTLED_TTL, DUPLICATES_TTL = 3600, 86400, 7 * 86400
local QUEUE_TTL = '86400000' -- ms
local delay, avoid, avoid_ms = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
-- include: prelude
-- include: parked
local job = prefix .. 'job:' .. id
local claims = prefix .. 'claims:' .. owner

local facts = redis.call('HMGET', job, 'queue', 'step', 'attempts', 'flag', 'expires', 'state', 'suspect_until', 'submitted', 'batch')
-- A record that was deleted meanwhile names no queue: the job goes to the default one.
local queue, step, attempts = facts[1] or 'sandfleet', facts[2] or '0', facts[3] or ''
local list_key = prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
local message = try('HGET', claims, claim)
if not message then
  local named = redis.call('HMGET', job, 'state', 'claim', 'owner')
  if (named[1] == 'running' or named[1] == 'waiting') and named[2] == claim and named[3] == owner then
    message = ARGV[10]
  end
end
if message and not try('LLEN', list_key) then
  return redis.error_reply('WRONGTYPE the queue of job ' .. id .. ' is no list')
end
try('HDEL', claims, claim) -- the first write: see beat.lua
if not message then
  local settled = redis.call('GET', prefix .. 'settled:' .. claim)
  if settled then
    -- The caller repeats what was done, since the answer got lost.
    return settled == 'given back' and 1 or 0
  end
  redis.call('SET', prefix .. 'settled:' .. claim, 'fenced', 'EX', SETTLED_TTL)
  if claim:sub(1, 6) ~= 'taken-' then -- else no run ended, only a decision about a dead worker's job came late
    try('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
      'kind', 'run', 'code', code)
    redis.call('EXPIRE', prefix .. 'duplicates', DUPLICATES_TTL)
  end
  return 0
end
local ran = 0
if facts[4] == 'start' and facts[6] ~= 'waiting' and attempts ~= '' then
  local is_list, list = pcall(cjson.decode, attempts)
  list = is_list and type(list) == 'table' and list or {}
  local last = type(list[#list]) == 'table' and list[#list] or { ended = now }
  local has_not_started = mode == 'free' or mode == 'putback'
  if has_not_started and not last.ended then
    list[#list] = nil
  elseif not has_not_started then
    ran = math.max(0, now - (tonumber(last.started) or now))
    if not last.ended then
      last.code, last.ended = code, now
      if mode == 'release' then
        last.charged = false
      end
    end
  end
  attempts = #list > 0 and cjson.encode(list) or ''
end
redis.call('SET', prefix .. 'settled:' .. claim, 'given back', 'EX', SETTLED_TTL)
redis.call('HSET', job, 'state', 'queued', 'attempts', attempts, 'queue', queue, 'step', step)
redis.call('HDEL', job, 'claim', 'owner', 'flag')
if mode == 'free' and claim:sub(1, 6) == 'taken-' then
  redis.call('HINCRBY', job, 'lost_waits', 1) -- what kills its worker before it starts must not do so for ever
end
if claim:sub(1, 6) ~= 'taken-' and (mode == 'retry' or mode == 'release' and now > (tonumber(facts[7] or '') or now)) then
  redis.call('HDEL', job, 'suspect', 'suspect_until') -- its worker lives: it kills none
end

local expires = tonumber(facts[5]) or 0
if mode == 'retry' and (ARGV[12] or '') ~= '' then
  redis.call('HSET', job, 'needs', ARGV[12]) -- of the next attempt, whose limits are raised
elseif mode == 'putback' then
  redis.call('HSET', job, 'why', ARGV[11], 'why_at', now)
  if avoid ~= '' then -- it has tried to start it, whatever it said that it has
    redis.call('HSET', job, 'refused_by', (redis.call('HGET', job, 'refused_by') or '') .. owner .. ' ')
  end
  if ARGV[12] ~= '' then
    redis.call('HSET', job, 'needs', ARGV[12])
  end
end
if expires <= 0 then
  local queue_ttl = mode == 'putback' and ARGV[13] or QUEUE_TTL
  expires = (tonumber(facts[8]) or now) + tonumber(queue_ttl)
  redis.call('HSET', job, 'queue_ttl', queue_ttl)
end
expires = expires + ran + delay
redis.call('HSET', job, 'expires', expires)
try('ZADD', prefix .. 'expiring', expires, id)
if avoid ~= '' then
  redis.call('HSET', job, 'avoid', avoid, 'avoid_until', now + delay + avoid_ms)
end
local limits = facts[9] and facts[9] ~= '' and read_limits(facts[9]) or nil
if limits then
  check_deadline(limits)
  if limits.stopped then
    park_in_batch(limits, id, message, step, limits.stopped)
    return 1
  elseif not limits.at_most then -- else it keeps its place
    free_place(limits, id)
  end
end
local is_delayed = false
if delay > 0 then
  redis.call('HSET', job, 'message', message)
  is_delayed = try('ZADD', prefix .. 'delayed', now + delay, id) ~= nil
end
if not is_delayed then
  redis.call('HDEL', job, 'message')
  redis.call('RPUSH', list_key, message)
  try('SADD', prefix .. 'queues', queue)
  try('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', queue)
  redis.call('EXPIRE', prefix .. 'wake', WAKE_TTL)
end
return 1
