-- What scripts do with the keys of one batch; included where a script has the line "-- include: batch_keys", after `prefix` and `try`.
--
-- batch:<name> list of members; ends:<name> stream of ends, one entry for each job, its newest run's; counts:<name> hash: jobs by
-- code, `sealed`, `dropped` (ends that were dropped and whose members still stand in the list) and `imported`; done:<name> list of
-- ended ids, which releases before this one write and read. `imported` counts the items of it that the stream has, too.
-- Invariant: a batch has LLEN(batch) - dropped jobs, of which XLEN(ends) have ended.
local BATCH_TTL = 30 * 86400 -- of a batch that goes on: no job waits that long (spec.MAX_QUEUE_TTL_SECONDS)
local function batch_keys(name)
  return { members = prefix .. 'batch:' .. name, ends = prefix .. 'ends:' .. name, counts = prefix .. 'counts:' .. name,
    done = prefix .. 'done:' .. name }
end

local function read_count(keys, field)
  return tonumber(try('HGET', keys.counts, field) or 0) or 0
end

local function add_count(keys, field, number)
  if number ~= 0 and (try('HINCRBY', keys.counts, field, number) or 1) <= 0 then
    try('HDEL', keys.counts, field)
  end
end

-- Adds an end to the stream and counts it.
local function add_end(keys, id, run, code)
  local entry = try('XADD', keys.ends, '*', 'id', id, 'run', run, 'code', code)
  if entry then
    redis.call('HSET', prefix .. 'job:' .. id, 'end_entry', entry)
    add_count(keys, code, 1)
  end
end

-- Takes an end out of the stream again; nothing happens where it is not there any more.
local function take_end(keys, entry, code)
  if entry and try('XDEL', keys.ends, entry) == 1 then
    add_count(keys, code, -1)
  end
end

-- Adds the ends that only the list `done` has: an older worker recorded them. Returns how many.
local function import_ends(keys, limit)
  local length, imported = try('LLEN', keys.done) or 0, read_count(keys, 'imported')
  if imported == length then
    return 0
  elseif imported > length then -- an older producer has taken dead letters out of it
    add_count(keys, 'imported', length - imported)
    return 0
  end
  local found = 0
  local ids = try('LRANGE', keys.done, imported, imported + limit - 1) or {}
  for _, id in ipairs(ids) do
    local facts = try('HMGET', prefix .. 'job:' .. id, 'state', 'code', 'run', 'end_entry') or {}
    if facts[1] == 'ended' and not facts[4] then
      add_end(keys, id, facts[3] or '1', facts[2] or '')
      found = found + 1
    elseif not facts[1] then
      add_count(keys, 'dropped', 1) -- it ended so long ago that its record is gone
    end
  end
  add_count(keys, 'imported', #ids)
  return found
end

-- Drops what ended so long ago that its record is gone, from the front of each list: at most `limit` items of each.
-- A member without an end is dropped only where `may_lose`: a reader is told that its job is unknown.
local function drop_forgotten(keys, limit, may_lose)
  local function is_gone(id)
    return id and redis.call('EXISTS', prefix .. 'job:' .. id) == 0
  end
  local dropped = read_count(keys, 'dropped')
  local before = dropped
  local first = (try('XRANGE', keys.ends, '-', '+', 'COUNT', 1) or {})[1]
  local oldest = first and is_gone(first[2][2]) and redis.call('XRANGE', keys.ends, '-', '+', 'COUNT', limit) or {}
  for _, entry in ipairs(oldest) do
    if not is_gone(entry[2][2]) then
      break
    end
    take_end(keys, entry[1], entry[2][6])
    dropped = dropped + 1
  end
  for _ = 1, limit do
    if not (may_lose or dropped > 0) or not is_gone(try('LINDEX', keys.members, 0)) then
      break
    end
    redis.call('LPOP', keys.members)
    dropped = math.max(0, dropped - 1)
  end
  add_count(keys, 'dropped', dropped - before)
  local done = 0
  while done < limit and is_gone(try('LINDEX', keys.done, 0)) do
    redis.call('LPOP', keys.done)
    done = done + 1
  end
  add_count(keys, 'imported', -math.min(done, read_count(keys, 'imported')))
end

-- Returns how many jobs the batch has, and how many of them have ended.
local function count_jobs(keys)
  local total = math.max(0, (try('LLEN', keys.members) or 0) - read_count(keys, 'dropped'))
  return total, math.min(total, try('XLEN', keys.ends) or 0)
end

-- Sets the TTL of all keys: `ttl` where every job has ended. With `now_and_then` else at the first of each hundred ends only.
local function expire_batch(keys, ttl, now_and_then)
  local total, ended = count_jobs(keys)
  if now_and_then and ended < total and ended % 100 ~= 1 then
    return
  end
  local seconds = ended >= total and ttl or math.max(ttl, BATCH_TTL)
  for _, key in pairs(keys) do
    redis.call('EXPIRE', key, seconds)
  end
end
