-- Functions for the keys of a batch. A script includes them by the line "-- include: batch_keys",
-- after `prefix`, `now` and `try`.
--
-- batch:<name>   list of the ids of its jobs, the members
-- ends:<name>    stream of ends: one entry for each ended job, of its newest run
-- counts:<name>  hash: jobs by code; `sealed`; `dropped`, dropped ends whose members are still in
--                the list; `imported`, items of done:<name> that the stream has too
-- pins:<name>    hash: name of an image -> the digest that it means for the batch
-- on_done:<name> hash: who is told when the batch is done, see webhooks.lua
-- done:<name>    list of ended ids, which release e5bcdee reads and writes
-- limits:<name>, active:<name>: see parked.lua. They go with the batch: a later batch of the same name
-- has no limits of this one.
-- Invariant: a batch has LLEN(batch) - dropped jobs, of which XLEN(ends) have ended.
local BATCH_TTL = 30 * 86400 -- s, of a batch with jobs that have not ended; longer than a job may wait in the queue
local function batch_keys(name)
  return { members = prefix .. 'batch:' .. name, ends = prefix .. 'ends:' .. name, counts = prefix .. 'counts:' .. name,
    done = prefix .. 'done:' .. name, pins = prefix .. 'pins:' .. name, on_done = prefix .. 'on_done:' .. name,
    limits = prefix .. 'limits:' .. name, active = prefix .. 'active:' .. name }
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

-- Deletes an end from the stream, if it is still there.
local function take_end(keys, entry, code)
  if entry and try('XDEL', keys.ends, entry) == 1 then
    add_count(keys, code, -1)
  end
end

-- Imports ends that only the list `done` has, since an older worker recorded them. Returns their
-- number.
local function import_ends(keys, limit)
  local length, imported = try('LLEN', keys.done) or 0, read_count(keys, 'imported')
  if imported == length then
    return 0
  elseif imported > length then -- an older producer has removed dead letters from the list
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
      add_count(keys, 'dropped', 1) -- it ended long ago: its record has expired
    end
  end
  add_count(keys, 'imported', #ids)
  return found
end

-- Drops jobs whose records have expired from the front of each list, at most `limit` from each.
-- A member without an end is dropped only if `may_lose`: a reader of it gets JobUnknown.
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

-- Returns the number of jobs of the batch, and the number of those that have ended.
local function count_jobs(keys)
  local total = math.max(0, (try('LLEN', keys.members) or 0) - read_count(keys, 'dropped'))
  return total, math.min(total, try('XLEN', keys.ends) or 0)
end

-- Sets the TTL of all keys: `ttl` if every job has ended, else at least BATCH_TTL. With
-- `now_and_then` it is renewed only at the first of each hundred ends. Returns whether every job
-- has ended.
local function expire_batch(keys, ttl, now_and_then)
  local total, ended = count_jobs(keys)
  if now_and_then and ended < total and ended % 100 ~= 1 then
    return
  end
  local seconds = ended >= total and ttl or math.max(ttl, BATCH_TTL)
  for _, key in pairs(keys) do
    redis.call('EXPIRE', key, seconds)
  end
  return ended >= total
end

-- Notes that a batch is used now, in the list of all batches: the newest MAX_BATCHES, used within
-- BATCH_TTL.
local MAX_BATCHES = 10000
local function list_batch(name)
  local list = prefix .. 'batches'
  if try('ZADD', list, now, name) == 1 then
    try('ZREMRANGEBYSCORE', list, '-inf', now - BATCH_TTL * 1000)
    try('ZREMRANGEBYRANK', list, 0, -MAX_BATCHES - 1)
  end
  redis.call('EXPIRE', list, BATCH_TTL)
end
