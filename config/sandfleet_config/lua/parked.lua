-- Functions for jobs that may not start yet. They are parked: out of the queue's lists, their
-- messages in their records. A script includes them by the line "-- include: parked", after
-- `prefix`, `now` and `try`.
--
-- limits:<batch>  hash: at_most, max_failures, fail_fast, deadline (ms), deadline_text, kill ("1":
--                 a stop kills what runs), hold ("1"), failures, round (how often they were counted
--                 anew), stopped (why), stop_code, next (the next place), awaited ("1": jobs wait
--                 for the batch), set ("1")
-- active:<batch>  set of the ids of its jobs that workers have, if it has limits; with at_most also
--                 of those that have a place: they are in a list, or wait for another try
-- parked:<batch>  sorted set of its parked jobs, by step and place
-- limited         sorted set: batch -> when a sweep checks it next (ms)
-- A job's record says in `parked` which of the sorted sets it is in, in `place` where in its batch, and
-- in `failed` in which round its failure counts.
local PLACES, MAX_LET_GO, PARKED_TTL, CANCEL_MARK_TTL = 2 ^ 40, 500, 30 * 86400, 8 * 86400
local LIMITS = { 'at_most', 'max_failures', 'fail_fast', 'deadline', 'deadline_text', 'kill', 'hold', 'stopped', 'stop_code',
  'round', 'awaited', 'set' }

-- Lets a sweep check a batch (`limited`) or a group (`groups`) at a time.
local function schedule(set, when, name)
  try('ZADD', prefix .. set, when, name)
  redis.call('EXPIRE', prefix .. set, PARKED_TTL)
end

-- Sets the TTL of the limits of a batch: that of its jobs' list. The limits of a batch that does not
-- exist yet wait for its jobs.
local function expire_limits(name)
  local ttl = redis.call('TTL', prefix .. 'batch:' .. name)
  redis.call('EXPIRE', prefix .. 'limits:' .. name, ttl > 0 and ttl or PARKED_TTL)
end

-- Returns the limits of a batch, or nil if it has none.
local function read_limits(name)
  local values = try('HMGET', prefix .. 'limits:' .. name, unpack(LIMITS)) or {}
  if not values[#LIMITS] then
    return nil
  end
  local limits = { name = name, key = prefix .. 'limits:' .. name, active = prefix .. 'active:' .. name }
  for at, field in ipairs(LIMITS) do
    limits[field] = values[at] or nil
  end
  for _, field in ipairs({ 'at_most', 'max_failures', 'deadline' }) do
    limits[field] = tonumber(limits[field] or nil)
  end
  return limits
end

-- Stops a batch: none of its jobs starts any more. A sweep ends those that wait.
local function stop_batch(limits, code, reason)
  limits.stopped, limits.stop_code = 'batch ' .. limits.name .. ' stopped: ' .. reason, code
  redis.call('HSET', limits.key, 'stopped', limits.stopped, 'stop_code', code)
  redis.call('HDEL', limits.key, 'swept')
  schedule('limited', now, limits.name)
  if limits.kill then
    for _, id in ipairs(try('SMEMBERS', limits.active) or {}) do
      redis.call('SET', prefix .. 'cancel:' .. id, limits.stopped, 'EX', CANCEL_MARK_TTL)
    end
  end
end

local function check_deadline(limits)
  if limits.deadline and now > limits.deadline and not limits.stopped then
    stop_batch(limits, 'EXPIRED', 'its deadline is over (--deadline ' .. (limits.deadline_text or '') .. ')')
  end
end

-- Lets a sweep check a batch that gets jobs at its deadline: it drops batches of which nothing waits.
local function watch_deadline(limits)
  if limits.deadline and not limits.stopped then
    try('ZADD', prefix .. 'limited', 'NX', limits.deadline + 1, limits.name)
    redis.call('EXPIRE', prefix .. 'limited', PARKED_TTL)
  end
end

local function count_free(limits)
  return limits.at_most and limits.at_most - (try('SCARD', limits.active) or 0) or math.huge
end

local function describe_at_most(limits)
  local jobs = limits.at_most == 1 and 'job' or 'jobs'
  return string.format('batch %s runs at most %d %s at once (--at-most %d)', limits.name, limits.at_most, jobs, limits.at_most)
end

-- Returns why no job of the batch may start, however many run; or nil.
local function find_bar(limits)
  check_deadline(limits)
  if limits.stopped then
    return limits.stopped
  elseif limits.hold then
    return 'batch ' .. limits.name .. ' is held: sandfleet batch release ' .. limits.name
  end
end

-- Notes that a worker has a job, or that it has a place.
local function add_active(limits, id)
  if not try('SADD', limits.active, id) then -- a forged key of a wrong type
    redis.call('DEL', limits.active)
    redis.call('SADD', limits.active, id)
  end
  redis.call('EXPIRE', limits.active, PARKED_TTL)
end

-- Gives a job one of the places of its batch, or returns false.
local function take_place(limits, id)
  if not limits.at_most or try('SISMEMBER', limits.active, id) == 1 then
    return true
  elseif count_free(limits) <= 0 then
    return false
  end
  add_active(limits, id)
  return true
end

local function park(id, message, where, score, why)
  redis.call('HSET', prefix .. 'job:' .. id, 'message', message, 'parked', where, 'why', why, 'why_at', now)
  if not try('ZADD', prefix .. where, score, id) then -- a forged key of a wrong type
    redis.call('DEL', prefix .. where)
    redis.call('ZADD', prefix .. where, score, id)
  end
end

-- Parks a job of a batch. It comes where it was if it was parked before, else last.
local function park_in_batch(limits, id, message, step, why)
  local job = prefix .. 'job:' .. id
  local place = tonumber(try('HGET', job, 'place') or nil)
  if not place then
    place = redis.call('HINCRBY', limits.key, 'next', 1)
    redis.call('HSET', job, 'place', place)
  end
  try('SREM', limits.active, id)
  park(id, message, 'parked:' .. limits.name, tonumber(step) * PLACES + place, why)
  if not limits.is_scheduled then
    limits.is_scheduled = true
    redis.call('EXPIRE', prefix .. 'parked:' .. limits.name, PARKED_TTL)
    local when = limits.stopped and now or try('ZSCORE', prefix .. 'limited', limits.name) or now + 1000
    schedule('limited', when, limits.name)
  end
end

-- Puts the first `count` jobs of a sorted set back into their queues' lists: by "RPUSH" where the
-- next claims take them, by "LPUSH" behind all others. With `limits` they have places of their
-- batch. Returns their number.
local function let_go(where, count, push, limits)
  local popped = try('ZPOPMIN', prefix .. where, math.min(count, MAX_LET_GO)) or {}
  local first, last, by = 1, #popped - 1, 2
  if push == 'RPUSH' then
    first, last, by = last, first, -2 -- the first one is to be taken first
  end
  local queues, is_any = {}, false
  for at = first, last, by do
    local job = prefix .. 'job:' .. popped[at]
    local facts = try('HMGET', job, 'state', 'message', 'queue', 'step') or {}
    if facts[1] == 'queued' and facts[2] and facts[3] then
      local step = facts[4] or '0'
      local list = prefix .. facts[3] .. (step == '0' and '' or '\6\22' .. step)
      if try(push, list, facts[2]) then
        redis.call('HDEL', job, 'message', 'parked', 'why', 'why_at')
        queues[facts[3]], is_any = true, true
        if limits and limits.at_most then
          take_place(limits, popped[at])
        end
      else
        try('ZADD', prefix .. where, popped[at + 1], popped[at]) -- the queue's key has a wrong type
      end
    end
  end
  for queue in pairs(queues) do
    try('SADD', prefix .. 'queues', queue)
  end
  if is_any then
    try('XADD', prefix .. 'wake', 'MAXLEN', 1, '*', 'queue', '')
    redis.call('EXPIRE', prefix .. 'wake', 3600)
  end
  return #popped / 2
end

-- Lets as many parked jobs go as the limits of their batch allow. With `at_most` the next one comes
-- before the other jobs of its queue, unless the batch `is_new`: it has waited for its batch only.
-- Returns their number.
local function let_go_free(limits, is_new)
  local where, free = 'parked:' .. limits.name, count_free(limits)
  if limits.stopped or limits.hold or free <= 0 or (try('ZCARD', prefix .. where) or 0) == 0 then
    return 0
  end
  return let_go(where, free, limits.at_most and not is_new and 'RPUSH' or 'LPUSH', limits)
end

-- Takes the place of a job back, and gives it to the next one.
local function free_place(limits, id)
  try('SREM', limits.active, id)
  if limits.at_most then
    let_go_free(limits)
  end
end

-- Notes the end of a run. It may stop the batch.
local function note_end(limits, id, code)
  try('SREM', limits.active, id) -- first: a stop that kills leaves it alone
  check_deadline(limits)
  if limits.max_failures and not limits.stopped and code ~= 'OK' and code ~= 'CANCELLED' then
    redis.call('HSET', prefix .. 'job:' .. id, 'failed', limits.round or '0')
    local failures = redis.call('HINCRBY', limits.key, 'failures', 1)
    if failures >= limits.max_failures then
      local option = limits.fail_fast and '--fail-fast' or '--max-failures ' .. limits.max_failures
      stop_batch(limits, 'CANCELLED', string.format('%d of its jobs failed (%s)', failures, option))
    end
  end
  free_place(limits, id)
end

-- Forgets the failures of a batch so far.
local function count_anew(limits)
  redis.call('HDEL', limits.key, 'failures')
  limits.round = tostring(redis.call('HINCRBY', limits.key, 'round', 1))
end

-- Lifts the stop of a batch: a person wants its jobs to run. Failures are counted anew.
local function lift_stop(limits)
  if limits.stopped then
    redis.call('HDEL', limits.key, 'stopped', 'stop_code', 'swept', 'deadline', 'deadline_text')
    limits.stopped, limits.stop_code, limits.deadline = nil, nil, nil
    count_anew(limits)
  end
end
