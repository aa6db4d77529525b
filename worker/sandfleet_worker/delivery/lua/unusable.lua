-- Messages that a claim takes off a queue for good: malformed ones, and second messages of a job.
--
-- A part of claim.lua: uses its `prefix`, `owner`, `claim`, `now`, `try` and MAX_DISCARDED.
-- `discarded` counts the messages that it took off the queues.
local DEAD_TTL, MAX_MALFORMED, MAX_MALFORMED_BYTES = 7 * 86400, 1000, 8192 -- how many are kept, and how much of each
local discarded, malformed = 0, {}

local function set_aside(queue, message, reason)
  discarded = discarded + 1
  malformed[#malformed + 1] = { queue, message, reason }
end

-- Returns how many more malformed messages may be kept; those that were purged since do not count.
local function count_free()
  local key = prefix .. 'malformed'
  try('ZREMRANGEBYSCORE', key, '-inf', now - DEAD_TTL * 1000)
  if (try('ZCARD', key) or MAX_MALFORMED) >= MAX_MALFORMED then
    for _, id in ipairs(try('ZRANGE', key, 0, MAX_DISCARDED) or {}) do
      if redis.call('EXISTS', prefix .. 'dead:' .. id) == 0 then
        redis.call('ZREM', key, id)
      end
    end
  end
  return MAX_MALFORMED - (try('ZCARD', key) or MAX_MALFORMED)
end

-- Counts the malformed messages and keeps at most `count_free()` of them; returns how many it kept.
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
  redis.call('EXPIRE', counter, DEAD_TTL + 86400) -- longer than any dead letter, so that no number is given twice
  local kept = math.max(0, math.min(#malformed, count_free()))
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
  discarded = discarded + 1
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
