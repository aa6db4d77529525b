-- Take over one worker whose lease has ended: its claims move under the caller's lease, with new ids that fence the old ones off.
--
-- ARGV: prefix, owner, token (new for each call), limit, "1" to take over or "0" only to look at what was taken before
-- Returns {dead worker or "", then 8 for each taken claim of the caller, this call's or an earlier one's that it has not decided:
-- claim id, job id, flag, message, queue, attempts, max_attempts, "1" if cancelled}. Many may race: each claim has one owner.
local prefix, owner, token, limit, may_take = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local TAKEN = 'taken-'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owners, mine = prefix .. 'owners', prefix .. 'claims:' .. owner

local lease = redis.call('ZSCORE', owners, owner)
local dead = ''
if lease and tonumber(lease) >= now and may_take then
  dead = redis.call('ZRANGEBYSCORE', owners, '-inf', '(' .. now, 'LIMIT', 0, 1)[1] or ''
end
if dead ~= '' then
  redis.call('ZREM', owners, dead) -- first: see beat.lua
  local pairs_of_dead = redis.call('HGETALL', prefix .. 'claims:' .. dead)
  for at = 1, #pairs_of_dead, 2 do
    local message = pairs_of_dead[at + 1]
    local claim = TAKEN .. token .. '-' .. at
    redis.call('HSET', mine, claim, message)
    redis.call('HSET', prefix .. 'job:' .. cjson.decode(message).headers.id, 'claim', claim, 'owner', owner)
  end
  redis.call('DEL', prefix .. 'claims:' .. dead)
end

local answer = { dead }
for _, claim in ipairs(redis.call('HKEYS', mine)) do
  if claim:sub(1, #TAKEN) == TAKEN and limit > 0 then
    limit = limit - 1
    local message = redis.call('HGET', mine, claim)
    local id = cjson.decode(message).headers.id
    local facts = redis.call('HMGET', prefix .. 'job:' .. id, 'flag', 'queue', 'attempts', 'max_attempts')
    for _, value in ipairs({ claim, id, facts[1] or 'start', message, facts[2] or '', facts[3] or '', facts[4] or '',
      tostring(redis.call('EXISTS', prefix .. 'cancel:' .. id)) }) do
      answer[#answer + 1] = value
    end
  end
end
return answer
