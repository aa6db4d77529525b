-- Set the limits of a batch. They replace those that it has.
--
-- ARGV: prefix, batch, at_most, max_failures, "1" if that is --fail-fast, deadline in ms from now,
--       its text for people, "1" if a stop kills what runs ("" of each: none), "1" to begin anew
--       also with the same limits
-- Returns 1, or 0 where the same limits are in force for jobs that have not all ended: then the
-- deadline and the number of failures stay, so that a producer may repeat its submit.
-- Otherwise failures are counted anew, the deadline begins now, and a stop is lifted.
local prefix, batch = ARGV[1], ARGV[2]
-- include: prelude
-- include: batch_keys
-- include: parked
local key = prefix .. 'limits:' .. batch
local wanted = { at_most = ARGV[3], max_failures = ARGV[4], fail_fast = ARGV[5], deadline_ms = ARGV[6], deadline_text = ARGV[7],
  kill = ARGV[8] }

-- Notes which jobs of the batch workers have: only those of a batch with limits are noted at their
-- claims. Jobs that were let go and that no worker has yet give their places back: there may be fewer
-- places now.
local function find_active()
  redis.call('DEL', prefix .. 'active:' .. batch)
  for _, owner in ipairs(try('ZRANGE', prefix .. 'owners', 0, -1) or {}) do
    for _, message in ipairs(try('HVALS', prefix .. 'claims:' .. owner) or {}) do
      local is_json, decoded = pcall(cjson.decode, message)
      local id = is_json and type(decoded) == 'table' and type(decoded.headers) == 'table' and decoded.headers.id
      if type(id) == 'string' and try('HGET', prefix .. 'job:' .. id, 'batch') == batch then
        redis.call('SADD', prefix .. 'active:' .. batch, id)
      end
    end
  end
  redis.call('EXPIRE', prefix .. 'active:' .. batch, PARKED_TTL)
end

local limits = read_limits(batch)
local total, ended = count_jobs(batch_keys(batch))
local is_same = limits ~= nil and total > ended and ARGV[9] ~= '1'
for field, value in pairs(wanted) do
  is_same = is_same and (try('HGET', key, field) or '') == value
end
if is_same then
  return 0
end
if redis.call('EXISTS', prefix .. 'batch:' .. batch) == 1 then
  find_active()
end
redis.call('HSET', key, 'set', 1)
redis.call('HDEL', key, 'stopped', 'stop_code', 'swept', 'deadline')
count_anew({ key = key })
for field, value in pairs(wanted) do
  if value ~= '' then
    redis.call('HSET', key, field, value)
  else
    redis.call('HDEL', key, field)
  end
end
if wanted.deadline_ms ~= '' then
  redis.call('HSET', key, 'deadline', now + tonumber(wanted.deadline_ms))
end
expire_limits(batch)
schedule('limited', now, batch)
return 1
