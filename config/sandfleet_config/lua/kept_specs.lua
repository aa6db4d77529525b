-- Functions for the specs of runs that did not end OK: they are kept so that a person can run these
-- jobs again. A script includes them by the line "-- include: kept_specs", after `prefix`, `now`
-- and `try`.
--
-- spec:<id>   the message of the job, whole
-- specs       sorted set: "<bytes of the message> <id>" -> when it expires (ms)
-- specs_sum   hash: bytes, of all kept messages; dropped, the number of those that were dropped
--             early
local MAX_SPEC_BYTES, SPEC_OVERHEAD = 268435456, 256 -- of all; and of each for its keys
local MAX_SPECS_DROPPED = 500 -- in one call
local FREE_SPEC_BYTES, MAX_USED = 16777216, 0.8 -- more of them only while Redis's memory is not so full
local specs_key, specs_sum = prefix .. 'specs', prefix .. 'specs_sum'

local function take_spec(member)
  local size, id = member:match('^(%d+) (.+)$')
  if try('ZREM', specs_key, member) == 1 and size then
    if (try('HINCRBY', specs_sum, 'bytes', -(size + SPEC_OVERHEAD)) or 0) < 0 then
      try('HDEL', specs_sum, 'bytes')
    end
  end
  return id
end

-- Deletes a kept spec, if there is one.
local function drop_spec(id)
  local size = try('STRLEN', prefix .. 'spec:' .. id) or 0
  if size > 0 then
    redis.call('DEL', prefix .. 'spec:' .. id)
    take_spec(string.format('%d', size) .. ' ' .. id)
  end
end

-- Whether Redis is so full that kept specs would take the place of jobs.
local function is_almost_full()
  local told = try('INFO', 'memory')
  local used, most = (told or ''):match('used_memory:(%d+)'), (told or ''):match('maxmemory:(%d+)')
  return used and most and tonumber(most) > 0 and used / most > MAX_USED
end

-- Frees space for `size` more bytes: forgets what has expired, then drops the oldest. Returns
-- whether it fits.
local function make_space(size)
  for _, member in ipairs(try('ZRANGEBYSCORE', specs_key, '-inf', now, 'LIMIT', 0, MAX_SPECS_DROPPED) or {}) do
    take_spec(member)
  end
  for at = 1, MAX_SPECS_DROPPED do
    local bytes = (tonumber(try('HGET', specs_sum, 'bytes') or 0) or 0) + size + SPEC_OVERHEAD
    if at == 1 and bytes > FREE_SPEC_BYTES and is_almost_full() then
      return false
    elseif bytes <= MAX_SPEC_BYTES then
      return true
    end
    local oldest = (try('ZRANGE', specs_key, 0, 0) or {})[1]
    if not oldest then
      redis.call('DEL', specs_sum) -- a forged sum: start again from zero
      return size + SPEC_OVERHEAD <= MAX_SPEC_BYTES
    end
    redis.call('DEL', prefix .. 'spec:' .. (take_spec(oldest) or ''))
    try('HINCRBY', specs_sum, 'dropped', 1)
  end
  return false
end

-- Renews the TTL of the keys that all kept specs share.
local function renew_specs(ttl)
  for _, key in ipairs({ specs_key, specs_sum }) do
    if redis.call('TTL', key) < ttl then
      redis.call('EXPIRE', key, ttl)
    end
  end
end

-- Counts a spec for which there is no space.
local function count_dropped_spec(ttl)
  try('HINCRBY', specs_sum, 'dropped', 1)
  renew_specs(ttl)
end

-- Keeps the message of a job for `ttl` s.
local function keep_spec(id, message, ttl)
  drop_spec(id)
  if message == '' then
    return
  end
  if make_space(#message) and try('ZADD', specs_key, now + ttl * 1000, string.format('%d', #message) .. ' ' .. id) then
    redis.call('SET', prefix .. 'spec:' .. id, message, 'EX', ttl)
    try('HINCRBY', specs_sum, 'bytes', #message + SPEC_OVERHEAD)
    renew_specs(ttl)
  else
    count_dropped_spec(ttl)
  end
end

-- Keeps the message of a job that ended in the queue, when it leaves the queue at last.
local function keep_ended(id, message)
  local job = prefix .. 'job:' .. id
  if try('HDEL', job, 'in_queue') == 1 then
    keep_spec(id, message, math.max(1, redis.call('TTL', job)))
  end
end
