-- Why this host cannot take a job now, and what becomes of the job meanwhile.
--
-- A part of claim.lua: uses its `prefix`, `owner`, `host`, `worker`, `me`, `now`, `try` and
-- `placing`. `aside` counts the jobs that it took off the queues for a while.
--
-- Such a job is put back where it was, at the right end of its list, and its record says why. A job
-- that waits for a label or a contract version that no live host has, or for a host that an operator
-- has marked, waits in `delayed`, so that it does not block others. So do jobs for another host, if there are more than MAX_OF_OTHERS in a
-- list. The first job of a list that could not be taken for want of memory for KEEP_AFTER ms gets
-- it by keeps:<host>. While that key lives, the host takes no other job but those of a smaller step
-- in the same queue. One host at a time does so for a job, and only as long as its claims find the
-- job: others may stand before it, or its worker may be dead.
local APART_MS, MAX_SUSPECTS_BACK = 500, 4
local KEEP_AFTER, KEEP_FOR, WHY_AGAIN = 10000, 5000, 1000 -- ms
-- Jobs for another host that keep their place; less than MAX_AVOIDED, or they would hide those
-- behind them.
local MAX_OF_OTHERS = 12
local ASIDE_MS, OF_OTHERS_MS, MAX_ASIDE = 2000, 200, 100000
local ASIDE_MS_EACH = 2 -- with so many aside that more than 500 would come back a second, each waits longer
local aside, put_back_suspects, of_others = 0, 0, 0

-- Returns the suspect record of a job that may have killed its worker, or nil. Where the host has
-- come back with another boot id since, its power was cut: the job is no suspect, and its attempt
-- is not charged.
local function find_suspect(text, attempts)
  if not text then
    return nil
  end
  local is_json, suspect = pcall(cjson.decode, text)
  if not is_json or type(suspect) ~= 'table' or type(suspect.host) ~= 'string' or not tonumber(suspect.ms) then
    return nil
  end
  local known = try('GET', prefix .. 'boot:' .. suspect.host)
  if suspect.boot == '' or not known or known == suspect.boot then
    return suspect
  end
  for at = #attempts, 1, -1 do
    local tried = attempts[at]
    if type(tried) == 'table' and tried.host == suspect.host and tried.boot == suspect.boot then
      tried.charged = false
      break
    end
  end
  return nil
end

local function tell_why(job, last, why)
  if now - (tonumber(last) or 0) >= WHY_AGAIN then
    redis.call('HSET', job, 'why', why, 'why_at', now)
  end
end

local keep_key = prefix .. 'keeps:' .. host
local kept -- the job that this host keeps its memory for
local function read_kept()
  local id = try('GET', keep_key)
  if not id then
    return nil
  end
  local facts = try('HMGET', prefix .. 'job:' .. id, 'state', 'queue', 'step') or {}
  if facts[1] ~= 'queued' or not facts[2] or not tonumber(facts[3]) then
    redis.call('DEL', keep_key)
    return nil
  end
  return { id = id, queue = facts[2], step = tonumber(facts[3]) }
end

local function is_kept_from(queue, step)
  return kept ~= nil and (queue ~= kept.queue or tonumber(step) > kept.step)
end

local function stop_keeping(id)
  if kept and kept.id == id then
    redis.call('DEL', keep_key)
    kept = nil
  end
end

-- Keeps this host's memory for the first such job of a list, if it has waited for KEEP_AFTER and no
-- other host keeps its memory for it.
local function keep_for(id, queue, step, since, kept_by)
  local job = prefix .. 'job:' .. id
  if not since then
    redis.call('HSET', job, 'short_since', now)
  elseif not kept and now - (tonumber(since) or now) >= KEEP_AFTER and try('GET', prefix .. 'keeps:' .. (kept_by or '')) ~= id then
    redis.call('SET', keep_key, id, 'PX', KEEP_FOR)
    redis.call('HSET', job, 'kept_by', host)
    kept = { id = id, queue = queue, step = tonumber(step) }
  end
end

-- Moves a job from its list to `delayed` for `ms` at least; returns false where that is full.
local function set_aside_waiting(id, message, ms)
  local delayed = prefix .. 'delayed'
  local count = try('ZCARD', delayed) or MAX_ASIDE
  if count >= MAX_ASIDE or not try('ZADD', delayed, now + math.max(ms, ASIDE_MS_EACH * count), id) then
    return false
  end
  redis.call('HSET', prefix .. 'job:' .. id, 'message', message)
  aside = aside + 1
  return true
end

-- Puts a suspect back: this worker has one, and another worker may have none. The first few keep
-- their place, so that another worker finds them at once. More of them wait in `delayed` for a
-- moment, or they would keep this worker from the jobs behind them.
local function put_apart(id, message)
  put_back_suspects = put_back_suspects + 1
  local is_aside = put_back_suspects > MAX_SUSPECTS_BACK and set_aside_waiting(id, message, APART_MS)
  return is_aside and 'aside' or 'avoid'
end

-- Compares the hosts for such needs. Returns the obstacle ("other" or "nobody") and why, or nil;
-- which kind of thing this host lacks; and the needs.
local compared = {}
local function compare_hosts(queue, text)
  local key = queue .. ' ' .. text
  local known = compared[key] -- the jobs of a batch need the same
  if known then
    return unpack(known, 1, 4)
  end
  local needs = placing.read_json(text) or {}
  local kind, lack = placing.find_lack(owner, needs)
  local obstacle, why
  local other = kind and placing.find_other_host(needs, queue)
  if other == 'free' then
    local verb = kind == 'ceiling' and ' does not let a job have' or ' does not have'
    obstacle, why = 'other', 'needs ' .. lack .. ', which ' .. host .. verb
  elseif other == 'marked' then -- it waits for the end of the mark, and keeps no host from other jobs
    obstacle, why = 'nobody', 'needs ' .. lack .. ', which only hosts have that are cordoned or drained'
  elseif kind == 'label' or kind == 'contract' then
    obstacle, why = 'nobody', placing.tell_nobody(needs, kind, lack)
  end
  compared[key] = { obstacle, why, kind, needs }
  return obstacle, why, kind, needs
end

-- Returns nil where this host can take the job now, or must end it; else why not, and "other" where
-- another host can take it, "short" where this one can later, "nobody" where no live host can.
local function find_obstacle(id, queue, step, text)
  local obstacle, why, kind, needs
  if text then
    obstacle, why, kind, needs = compare_hosts(queue, text)
  end
  if kind then
    stop_keeping(id)
  end
  if obstacle then
    return obstacle, why
  end
  if kept and kept.id ~= id and tonumber(step) >= kept.step then
    return 'short', host .. ' keeps its memory for job ' .. kept.id
  elseif not text or not me.free or kind == 'ceiling' then
    return nil
  end
  local own = placing.read_host(owner)
  local memory = tonumber(needs.memory_bytes) or (own and tonumber(own.ceilings.memory_bytes)) or 0
  if memory > me.free then
    if kept and kept.id == id then
      redis.call('PEXPIRE', keep_key, KEEP_FOR)
    end
    local wanted, free = placing.format_bytes(memory), placing.format_bytes(me.free)
    if wanted == free then -- but for a few bytes
      wanted, free = string.format('%.0f bytes', memory), string.format('%.0f bytes', me.free)
    end
    return 'short', 'needs ' .. wanted .. ' of memory, ' .. host .. ' has ' .. free .. ' free'
  end
  return nil
end

-- Handles a job that meets an obstacle; returns "avoid", "short" or "aside" as `take` does.
local function put_back(id, message, obstacle)
  of_others = of_others + (obstacle == 'other' and 1 or 0)
  if obstacle == 'short' then
    return 'short'
  elseif obstacle == 'other' and of_others <= MAX_OF_OTHERS then
    return 'avoid'
  end
  return set_aside_waiting(id, message, obstacle == 'other' and OF_OTHERS_MS or ASIDE_MS) and 'aside' or 'avoid'
end
