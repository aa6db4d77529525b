-- Take over one worker whose lease has ended: its claims move under the caller's lease, with new
-- ids that fence the old ones off.
--
-- ARGV: prefix, owner, token (new for each call), limit, "1" to take over or "0" only to look at
--       what was taken before, then the ids of taken claims to pass over
-- Returns {dead worker or "", 1 if sweep_parked.lua has something to do, else 0, then 11 for each
-- taken claim of the caller, this call's or an earlier one's that it has not decided: claim id, job
-- id, flag, message, queue, attempts, max_attempts, run, its cancel mark or "", state, lost_waits}.
-- Many may race: each claim has one owner. The attempts of what had started under the dead worker
-- end here, as WORKER_LOST, and it is decided which of them is charged. A forged claim (no JSON, no
-- id, a key of a wrong type, a name that no take-over gives) is deleted.
local prefix, owner, token, limit, may_take = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local TAKEN = 'taken-'
-- include: prelude
local owners, mine = prefix .. 'owners', prefix .. 'claims:' .. owner

local function read_id(message)
  local is_json, decoded = pcall(cjson.decode, message)
  local headers = is_json and type(decoded) == 'table' and decoded.headers
  local id = type(headers) == 'table' and headers.id
  return type(id) == 'string' and id or nil
end

local function decode(text)
  local is_json, decoded = pcall(cjson.decode, text or '')
  return is_json and type(decoded) == 'table' and decoded or nil
end

-- Whether the host has come back with another boot id: its power was cut, which no job can do.
local function has_rebooted(host, boot)
  local known = type(host) == 'string' and try('GET', prefix .. 'boot:' .. host)
  return known and boot and boot ~= '' and known ~= boot or false
end

-- Returns the attempts of a job that had started under this claim, and when it began, or nil.
local function find_started(job, claim)
  local facts = try('HMGET', job, 'state', 'flag', 'claim', 'attempts', 'suspect', 'suspect_until') or {}
  local list = decode(facts[4])
  local last = list and list[#list]
  if facts[1] ~= 'running' or facts[2] ~= 'start' or facts[3] ~= claim or type(last) ~= 'table' or last.ended then
    return nil
  end
  local suspect = decode(facts[5])
  local is_suspect = suspect and not has_rebooted(suspect.host, suspect.boot)
  return { job = job, list = list, last = last, runs_apart_until = is_suspect and tonumber(facts[6]) or 0 }
end

-- Ends the attempts of what had started under the dead worker. One is charged where only that job
-- can have killed the worker: it was alone, or was the one suspect among those that had been
-- started without a blame. `seen` is when the worker lived for sure.
local function judge(started, seen)
  local active = {}
  for _, one in ipairs(started) do
    if one.runs_apart_until >= seen then
      active[#active + 1] = one
    end
  end
  local suspects = #active > 0 and active or started
  for _, one in ipairs(started) do
    one.last.code, one.last.ended, one.last.charged = 'WORKER_LOST', now, false
    redis.call('HDEL', one.job, 'suspect', 'suspect_until')
  end
  for _, one in ipairs(suspects) do
    local last = one.last
    if not has_rebooted(last.host, last.boot) then
      last.charged = #suspects == 1
      redis.call('HSET', one.job, 'suspect', cjson.encode({ host = last.host, boot = last.boot or '',
        ms = math.max(0, now - (tonumber(last.started) or now)) }))
    end
  end
  for _, one in ipairs(started) do
    redis.call('HSET', one.job, 'attempts', cjson.encode(one.list))
  end
end

local lease = redis.call('ZSCORE', owners, owner)
local dead = ''
if lease and tonumber(lease) >= now and may_take then
  dead = redis.call('ZRANGEBYSCORE', owners, '-inf', '(' .. now, 'LIMIT', 0, 1)[1] or ''
end
if dead ~= '' then
  -- A lease ends one lease after its last beat. The caller's own lease gives that length, within a
  -- third. A worker that left (leave.lua) lived until now.
  local expires = tonumber(redis.call('ZSCORE', owners, dead))
  local seen = expires > 0 and expires - (tonumber(lease) - now) or now
  redis.call('ZREM', owners, dead) -- first: see beat.lua
  local pairs_of_dead, started = try('HGETALL', prefix .. 'claims:' .. dead) or {}, {}
  try('HDEL', prefix .. 'hosts', dead)
  redis.call('DEL', prefix .. 'images:' .. dead, prefix .. 'status:' .. dead, prefix .. 'running:' .. dead)
  for at = 1, #pairs_of_dead, 2 do
    local message = pairs_of_dead[at + 1]
    local claim, id = TAKEN .. token .. '-' .. at, read_id(message)
    if id then
      redis.call('HSET', mine, claim, message)
      started[#started + 1] = find_started(prefix .. 'job:' .. id, pairs_of_dead[at])
      try('HSET', prefix .. 'job:' .. id, 'claim', claim, 'owner', owner)
    end
  end
  redis.call('DEL', prefix .. 'claims:' .. dead)
  judge(started, seen)
end

local function read_mark(id)
  local mark = redis.pcall('GET', prefix .. 'cancel:' .. id)
  return type(mark) == 'string' and mark or mark and 'cancel' or ''
end

local is_passed = {}
for at = 6, #ARGV do
  is_passed[ARGV[at]] = true
end
local function is_due(set)
  return #(try('ZRANGEBYSCORE', prefix .. set, '-inf', now, 'LIMIT', 0, 1) or {}) > 0
end

local answer = { dead, (is_due('limited') or is_due('groups')) and 1 or 0 }
for _, claim in ipairs(try('HKEYS', mine) or {}) do
  if claim:sub(1, #TAKEN) == TAKEN and limit > 0 and not is_passed[claim] then
    limit = limit - 1
    local message = redis.call('HGET', mine, claim)
    local id = not claim:find('[^%w-]') and read_id(message)
    if id then
      local facts = try('HMGET', prefix .. 'job:' .. id, 'flag', 'queue', 'attempts', 'max_attempts', 'run', 'state',
        'lost_waits') or {}
      for _, value in ipairs({ claim, id, facts[1] or 'start', message, facts[2] or '', facts[3] or '', facts[4] or '',
        facts[5] or '1', read_mark(id), facts[6] or '', facts[7] or '' }) do
        answer[#answer + 1] = value
      end
    else
      redis.call('HDEL', mine, claim)
    end
  end
end
return answer
