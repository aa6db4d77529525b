-- Decide anew about claims that this worker does not hold, although Redis says so: Redis has lost
-- their end, in a fail-over or a power cut. They are decided as those of a dead worker (reap.lua).
-- No start of them is charged. A claim whose job has no record is decided, too, as reap.lua does;
-- one whose job's record names another claim is dropped.
--
-- ARGV: prefix, owner, then the ids of these claims
-- Returns the ids of the jobs that will run again or end.
local prefix, owner = ARGV[1], ARGV[2]
local DUPLICATES_TTL = 7 * 86400
-- include: prelude
local claims, found = prefix .. 'claims:' .. owner, {}

local function read_id(message)
  local is_json, decoded = pcall(cjson.decode, message)
  local headers = is_json and type(decoded) == 'table' and decoded.headers
  return type(headers) == 'table' and type(headers.id) == 'string' and not headers.id:find('[\128-\255]') and headers.id or nil
end

-- Ends the last attempt of a job that had started.
local function end_attempt(job, facts)
  local is_list, list = pcall(cjson.decode, facts[4] or '')
  local last = is_list and type(list) == 'table' and list[#list]
  if facts[1] == 'running' and facts[3] == 'start' and type(last) == 'table' and not last.ended then
    last.code, last.ended, last.charged = 'WORKER_LOST', now, false
    redis.call('HSET', job, 'attempts', cjson.encode(list))
  end
end

for at = 3, #ARGV do
  local claim = ARGV[at]
  local message = try('HGET', claims, claim)
  local id = message and read_id(message)
  try('HDEL', claims, claim) -- the first write: see beat.lua
  local job = prefix .. 'job:' .. (id or '')
  local facts = id and try('HMGET', job, 'state', 'claim', 'flag', 'attempts') or {}
  if id and (facts[2] == claim or not facts[1]) then
    end_attempt(job, facts)
    redis.call('HSET', claims, 'taken-' .. claim, message)
    try('HSET', job, 'claim', 'taken-' .. claim, 'owner', owner)
    try('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
      'kind', 'run', 'code', 'Redis lost how the run ended')
    redis.call('EXPIRE', prefix .. 'duplicates', DUPLICATES_TTL)
    found[#found + 1] = id
  end
end
return found
