-- Renew a worker's lease and say how it is; find its jobs that were cancelled, its claims that were
-- deleted, and the mark of its host.
--
-- ARGV: prefix, owner, lease in ms, host, how it is as JSON ("": it does not say), the jobs that it
--       has as JSON ("": none), then claim id and job id of each job it runs
-- Returns {"lost"} where another worker has taken over: a lease that ended is never given back, a
-- late one is renewed; else {"held", {id and cancel mark of each cancelled job...}, {ids of claims
-- that are not there...}, now (ms), mark of the host ("": none)}. A claim whose run has just ended is
-- not there, too. The mark of a job is "cancel", or why the job's batch was stopped. That of the host
-- is its entry in `cordons`, or "{}" where that is no text of a usable size.
local prefix, owner, lease, host, status, running = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local LEASES_TOLD, LEAST_TTL, MAX_MARK_BYTES = 3, 2, 4096
-- include: prelude
-- ZREM first: at maxmemory Redis refuses a write that may need memory only where it is a script's
-- first.
if redis.call('ZREM', prefix .. 'owners', owner) == 0 then
  return { 'lost' }
end
redis.call('ZADD', prefix .. 'owners', now + lease, owner)

local ttl = math.max(LEAST_TTL, math.ceil(LEASES_TOLD * lease / 1000))
if status ~= '' then
  redis.call('SET', prefix .. 'status:' .. owner, status:sub(1, -2) .. ',"at":' .. string.format('%d', now) .. '}', 'EX', ttl)
end
if running ~= '' then
  redis.call('SET', prefix .. 'running:' .. owner, running, 'EX', ttl)
else
  redis.call('DEL', prefix .. 'running:' .. owner)
end

local function read_host_mark()
  local cordons = prefix .. 'cordons'
  if redis.pcall('HEXISTS', cordons, host) ~= 1 then -- not there, or the key has a wrong type
    return ''
  end
  local size = redis.call('HSTRLEN', cordons, host)
  return size > 0 and size <= MAX_MARK_BYTES and redis.call('HGET', cordons, host) or '{}'
end

local cancelled, missing = {}, {}
for at = 7, #ARGV, 2 do
  local mark = redis.pcall('GET', prefix .. 'cancel:' .. ARGV[at + 1])
  if mark then
    cancelled[#cancelled + 1] = ARGV[at + 1]
    cancelled[#cancelled + 1] = type(mark) == 'string' and mark or 'cancel'
  end
  if redis.pcall('HEXISTS', prefix .. 'claims:' .. owner, ARGV[at]) ~= 1 then
    missing[#missing + 1] = ARGV[at]
  end
end
return { 'held', cancelled, missing, now, read_host_mark() }
