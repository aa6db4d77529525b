-- Delete records, outcomes and ends of a batch's ended jobs, for the next few of its members.
--
-- ARGV: prefix, batch, largest number of members to check
-- Returns {number of members that have not ended, ids of the deleted jobs...}. A job that has not
-- ended goes to the end of the list, so that as many checks as the batch has members reach each
-- member once.
-- The history deletes the runs of the batch that ended before now.
local prefix, batch, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local MAX_FORGOTTEN, FORGOTTEN_TTL = 10000, 40 * 86400

-- include: prelude

-- include: batch_keys
-- include: kept_specs
local keys = batch_keys(batch)
import_ends(keys, limit)
local function forget(id, facts)
  local names = { prefix .. 'job:' .. id, prefix .. 'celery-task-meta-' .. id }
  for run = 1, math.min(1000, (tonumber(facts[2]) or 1) - 1) do
    names[#names + 1] = prefix .. 'run:' .. run .. ':' .. id
  end
  if facts[3] and facts[3] ~= '' and try('GET', prefix .. 'idem:' .. facts[3]) == id then
    names[#names + 1] = prefix .. 'idem:' .. facts[3]
  end
  redis.call('UNLINK', unpack(names))
  drop_spec(id)
  if facts[4] then
    take_end(keys, facts[4], facts[5] or '')
  elseif not facts[1] then
    -- The record is gone. Its end is gone too, or is at the front of the stream, where
    -- `drop_forgotten` deletes it.
    add_count(keys, 'dropped', -math.min(1, read_count(keys, 'dropped')))
  end
end

drop_forgotten(keys, limit, true)
local answer = { 0 }
for _ = 1, limit do
  local id = try('LPOP', keys.members)
  if not id then
    break
  end
  local facts = try('HMGET', prefix .. 'job:' .. id, 'state', 'run', 'key', 'end_entry', 'code') or {}
  if facts[1] and facts[1] ~= 'ended' then
    redis.call('RPUSH', keys.members, id)
    answer[1] = answer[1] + 1
  else
    forget(id, facts)
    answer[#answer + 1] = id
  end
end
drop_forgotten(keys, limit, true)
if redis.call('EXISTS', keys.members) == 0 then
  redis.call('UNLINK', keys.ends, keys.counts, keys.done, keys.pins, keys.on_done, keys.limits, keys.active)
  try('ZREM', prefix .. 'batches', batch)
else
  expire_batch(keys, BATCH_TTL)
end
local forgotten = prefix .. 'ended_runs:forgotten'
local is_noted = try('ZADD', forgotten, now, batch)
if not is_noted then -- a forged key of another type
  redis.call('DEL', forgotten)
  is_noted = redis.call('ZADD', forgotten, now, batch)
end
if is_noted == 1 then
  try('ZREMRANGEBYRANK', forgotten, 0, -MAX_FORGOTTEN - 1)
end
redis.call('EXPIRE', forgotten, FORGOTTEN_TTL)
return answer
