-- Check one batch with limits, or one group of jobs that wait for others, that is due: let jobs go,
-- or find those that must end.
--
-- ARGV: prefix, largest number of jobs, batch or group to go on with ("": the next that is due),
--       kind of it ("batch" or "group"), cursor in the batch's list of jobs
-- Returns {"none"} where nothing is due; {"again"} where something was done; or {"end", name, kind,
-- cursor, code, why, ids...}: the caller ends these jobs, if they are still queued, and then goes
-- on with that name, kind and cursor. A caller that dies meanwhile loses nothing: the batch or
-- group is due again 10 s later. A forged stop without a code counts as CANCELLED.
local prefix, limit, name, kind, cursor = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local POLL_MS, MINE_MS, MS_EACH, MAX_CHECKED, MAX_GROUPS = 2000, 10000, 2, 1000, 20
-- include: prelude
-- include: batch_keys
-- include: parked
-- include: after

local function find_due(set)
  return (try('ZRANGEBYSCORE', prefix .. set, '-inf', now, 'LIMIT', 0, 1) or {})[1]
end

-- Returns the first parked jobs, without those that are not queued any more: an older release
-- leaves them behind.
local function list_parked(where)
  local found = {}
  for _ = 1, 10 do
    local ids = try('ZRANGE', prefix .. where, 0, limit - 1) or {}
    for _, id in ipairs(ids) do
      if try('HGET', prefix .. 'job:' .. id, 'state') == 'queued' then
        found[#found + 1] = id
      else
        redis.call('ZREM', prefix .. where, id)
      end
    end
    if #found > 0 or #ids == 0 then
      break
    end
  end
  return found
end

local function check_group_due(group)
  local found, why = resolve_group(group)
  if found == 'wait' then
    -- With many groups each is polled less often. What ends is checked at once: see finish.lua.
    schedule('groups', now + math.max(POLL_MS, MS_EACH * (try('ZCARD', prefix .. 'groups') or 0)), group)
    return nil
  elseif found == 'failed' then
    schedule('groups', now + MINE_MS, group)
    return { 'end', group, 'group', 0, 'CANCELLED', why, unpack(list_parked('awaiting:' .. group)) }
  end
  return { 'again' }
end

-- Takes places back from jobs that have ended or are parked: an older worker that took over does
-- not do so.
local function heal(limits)
  for _, id in ipairs(try('SRANDMEMBER', limits.active, MAX_CHECKED) or {}) do
    local facts = try('HMGET', prefix .. 'job:' .. id, 'state', 'parked') or {}
    if not facts[1] or facts[1] == 'ended' or facts[2] then
      redis.call('SREM', limits.active, id)
    end
  end
end

-- Returns the next jobs of a stopped batch that are queued, and the cursor behind them.
local function find_queued(keys)
  local found = {}
  local ids = try('LRANGE', keys.members, cursor, cursor + limit - 1) or {}
  for _, id in ipairs(ids) do
    if try('HGET', prefix .. 'job:' .. id, 'state') == 'queued' then
      found[#found + 1] = id
    end
  end
  return found, #ids
end

local function end_stopped(limits, keys)
  schedule('limited', now + MINE_MS, limits.name)
  local code = limits.stop_code or 'CANCELLED'
  if not try('HGET', limits.key, 'swept') then
    local found, count = find_queued(keys)
    if count > 0 then
      return { 'end', limits.name, 'batch', cursor + count, code, limits.stopped, unpack(found) }
    end
    redis.call('HSET', limits.key, 'swept', 1)
  end
  local parked = list_parked('parked:' .. limits.name)
  if #parked > 0 then
    return { 'end', limits.name, 'batch', cursor, code, limits.stopped, unpack(parked) }
  end
  if (try('ZCARD', prefix .. 'parked:' .. limits.name) or 0) == 0 then
    redis.call('ZREM', prefix .. 'limited', limits.name)
  end
  return { 'again' }
end

local function check_batch_due(batch)
  local limits, where = read_limits(batch), 'parked:' .. batch
  if not limits then
    if let_go(where, limit, 'LPUSH') < limit then
      redis.call('ZREM', prefix .. 'limited', batch)
    end
    return { 'again' }
  end
  local keys = batch_keys(batch)
  local total, ended = count_jobs(keys)
  if total > ended then
    check_deadline(limits)
  end
  if limits.stopped then
    return end_stopped(limits, keys)
  end
  if limits.at_most then
    heal(limits)
  end
  let_go_free(limits)
  local left = (try('ZCARD', prefix .. where) or 0) > 0
  if left and not limits.hold then
    local poll_ms = math.max(POLL_MS, MS_EACH * (try('ZCARD', prefix .. 'limited') or 0))
    schedule('limited', now + (limits.at_most and poll_ms or 0), batch)
  elseif limits.deadline and total > ended then
    schedule('limited', limits.deadline + 1, batch)
  else
    redis.call('ZREM', prefix .. 'limited', batch)
  end
  return { 'again' }
end

-- Checks groups that are due, up to one of which jobs are let go or must end: nearly all of them wait.
local function check_groups_due(group)
  for _ = 1, MAX_GROUPS do
    local found = check_group_due(group)
    group = not found and find_due('groups')
    if not group then
      return found or { 'again' }
    end
  end
  return { 'again' }
end

if name == '' then
  local batch, group = find_due('limited'), find_due('groups')
  if not batch and not group then
    return { 'none' }
  end
  -- Where both are due they take turns, by the clock: neither keeps the other from being checked.
  kind = batch and (not group or now % 2 == 0) and 'batch' or 'group'
  name = kind == 'batch' and batch or group
end
if kind == 'group' then
  return check_groups_due(name)
end
return check_batch_due(name)
