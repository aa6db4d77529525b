-- Take over one worker whose lease has ended: its claims move under the caller's lease, with new ids that fence the old ones off.
--
-- ARGV: prefix, owner, token (new for each call), limit, "1" to take over or "0" only to look at what was taken before,
--       then the ids of taken claims to pass over
-- Returns {dead worker or "", then 8 for each taken claim of the caller, this call's or an earlier one's that it has not decided:
-- claim id, job id, flag, message, queue, attempts, max_attempts, "1" if cancelled}. Many may race: each claim has one owner.
-- What cannot be a claim (no JSON, no id, a key of a wrong type) is thrown away: only a stranger can have written it.
local prefix, owner, token, limit, may_take = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local TAKEN = 'taken-'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owners, mine = prefix .. 'owners', prefix .. 'claims:' .. owner

-- Like redis.call, but nil where the key has a wrong type.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    return nil
  end
  return reply
end

local function read_id(message)
  local is_json, decoded = pcall(cjson.decode, message)
  local headers = is_json and type(decoded) == 'table' and decoded.headers
  local id = type(headers) == 'table' and headers.id
  return type(id) == 'string' and id or nil
end

local lease = redis.call('ZSCORE', owners, owner)
local dead = ''
if lease and tonumber(lease) >= now and may_take then
  dead = redis.call('ZRANGEBYSCORE', owners, '-inf', '(' .. now, 'LIMIT', 0, 1)[1] or ''
end
if dead ~= '' then
  redis.call('ZREM', owners, dead) -- first: see beat.lua
  try('HDEL', prefix .. 'hosts', dead)
  redis.call('DEL', prefix .. 'images:' .. dead)
  local pairs_of_dead = try('HGETALL', prefix .. 'claims:' .. dead) or {}
  for at = 1, #pairs_of_dead, 2 do
    local message = pairs_of_dead[at + 1]
    local claim, id = TAKEN .. token .. '-' .. at, read_id(message)
    if id then
      redis.call('HSET', mine, claim, message)
      try('HSET', prefix .. 'job:' .. id, 'claim', claim, 'owner', owner)
    end
  end
  redis.call('DEL', prefix .. 'claims:' .. dead)
end

local is_passed = {}
for at = 6, #ARGV do
  is_passed[ARGV[at]] = true
end
local answer = { dead }
for _, claim in ipairs(try('HKEYS', mine) or {}) do
  if claim:sub(1, #TAKEN) == TAKEN and limit > 0 and not is_passed[claim] then
    limit = limit - 1
    local message = redis.call('HGET', mine, claim)
    local id = read_id(message)
    if id then
      local facts = try('HMGET', prefix .. 'job:' .. id, 'flag', 'queue', 'attempts', 'max_attempts') or {}
      for _, value in ipairs({ claim, id, facts[1] or 'start', message, facts[2] or '', facts[3] or '', facts[4] or '',
        tostring(redis.call('EXISTS', prefix .. 'cancel:' .. id)) }) do
        answer[#answer + 1] = value
      end
    else
      redis.call('HDEL', mine, claim)
    end
  end
end
return answer
