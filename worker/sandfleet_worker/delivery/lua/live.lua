-- Append output of a running job to its live stream; without output, keep the stream for longer.
--
-- ARGV: prefix, owner, claim id, job id, attempt, run, TTL in s, most bytes of the stream, most
--       bytes of all streams, bytes that an entry counts beside its output; then of each chunk its
--       stream, offset and bytes
-- Returns 1, or 0 where the job is not the caller's (any more): then nothing changes. Errors where
-- Redis is at its maxmemory.
--
-- live:<id> has the output of one attempt: its first chunk drops that of the attempt before. The
-- bytes of each stream, and when it expires, stand in live_streams:bytes and
-- live_streams:expiring. A stream that others have pushed out begins again with its next chunk.
local prefix, owner, claim, id, attempt, run = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local ttl, most, most_of_all, entry_bytes = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local FIRST_CHUNK, MAX_DROPPED = 11, 100
local STREAM_BYTES = 512 -- what a stream counts beside its entries
local FREE_BYTES, MAX_USED = 8388608, 0.8 -- more of all streams only while Redis's memory is not so full
-- include: prelude
local key, sizes, expiring = prefix .. 'live:' .. id, prefix .. 'live_streams:bytes', prefix .. 'live_streams:expiring'
local facts = redis.call('HMGET', prefix .. 'job:' .. id, 'claim', 'owner', 'batch')
if facts[1] ~= claim or facts[2] ~= owner then
  return 0
end
-- At maxmemory Redis refuses a write that may need memory as the first write of a script. This ZADD
-- changes nothing.
redis.call('ZADD', expiring, 'XX', 0, '')

local function count(name, bytes)
  if redis.call('HINCRBY', sizes, name, string.format('%d', bytes)) <= 0 then
    redis.call('HDEL', sizes, name)
  end
end

-- Adds to the bytes of a stream and to their sum, which is in the field without a name.
local function add_bytes(name, bytes)
  count(name, bytes)
  count('', bytes)
end

local function drop_stream(name)
  redis.call('ZREM', expiring, name)
  add_bytes(name, -(tonumber(redis.call('HGET', sizes, name) or 0) or 0))
  redis.call('DEL', prefix .. 'live:' .. name)
end

-- Drops the oldest entries of this stream until no more than `bytes` are left.
local function shorten(bytes)
  local own, dropped = tonumber(redis.call('HGET', sizes, id) or 0) or 0, 0
  while own - dropped > bytes do
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    if not oldest then
      break
    end
    dropped = dropped + entry_bytes + #(oldest[2][10] or '')
    redis.call('XDEL', key, oldest[1])
  end
  add_bytes(id, -dropped)
end

local function is_almost_full()
  local told = try('INFO', 'memory')
  local used, all = (told or ''):match('used_memory:(%d+)'), (told or ''):match('maxmemory:(%d+)')
  return used and all and tonumber(all) > 0 and used / all > MAX_USED
end

-- Whether `added` bytes more fit beside all streams; drops those that nobody wrote to for longest.
local function make_space(added)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', expiring, '-inf', now, 'LIMIT', 0, MAX_DROPPED)) do
    drop_stream(name)
  end
  for at = 0, MAX_DROPPED do
    local bytes = (tonumber(redis.call('HGET', sizes, '') or 0) or 0) + added
    if at == 0 and bytes > FREE_BYTES and is_almost_full() then
      return false -- what is left of Redis's memory is for outcomes
    elseif bytes <= most_of_all then
      return true
    end
    local oldest = redis.call('ZRANGE', expiring, 0, 0)[1]
    if not oldest then
      redis.call('DEL', sizes) -- a forged sum: start again from zero
      return true
    end
    drop_stream(oldest)
  end
  return false
end

local function append()
  local added = 0
  for at = FIRST_CHUNK, #ARGV, 3 do
    added = added + entry_bytes + #ARGV[at + 2]
  end
  local last = (try('XREVRANGE', key, '+', '-', 'COUNT', 1) or {})[1]
  if not last then
    drop_stream(id) -- it has expired, or is no stream
  elseif last[2][4] ~= attempt or last[2][6] ~= run then
    shorten(0) -- and not DEL: the ids of later entries must be greater
  else
    shorten(most - added)
  end
  if not make_space(added + STREAM_BYTES) then
    return -- the chunk is skipped
  end
  if redis.call('EXISTS', key) == 0 then
    add_bytes(id, STREAM_BYTES)
  end
  for at = FIRST_CHUNK, #ARGV, 3 do
    redis.call('XADD', key, '*', 'stream', ARGV[at], 'attempt', attempt, 'run', run, 'offset', ARGV[at + 1], 'data', ARGV[at + 2])
  end
  add_bytes(id, added)
  local batch = facts[3] or ''
  if batch ~= '' then
    local index = prefix .. 'live_batch:' .. batch
    redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
    redis.call('ZADD', index, now + ttl * 1000, id)
    redis.call('EXPIRE', index, ttl)
  end
end

if #ARGV >= FIRST_CHUNK then
  append()
end
if redis.call('EXPIRE', key, ttl) == 1 then
  redis.call('ZADD', expiring, now + ttl * 1000, id)
  redis.call('EXPIRE', expiring, ttl)
  redis.call('EXPIRE', sizes, ttl)
end
return 1
