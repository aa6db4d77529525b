-- Set the cancel mark of a job, and return the job's state.
--
-- ARGV: prefix, job id, TTL of the mark in s
-- Returns "queued", "running" (a worker has claimed it, started or not), "ended" or "unknown". The
-- caller then ends a queued job (finish.lua with owner ""), or tells the workers about a running
-- one. Every claim, beat and take-over checks the mark, so the job is cancelled even if the caller
-- dies first. An ended job gets no mark. An unknown id may be a job of a stock producer, which has
-- no record before its first claim. Its mark lasts a day. submit.lua deletes the mark, since a job
-- that is submitted later is another job.
local prefix, id, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local UNKNOWN_TTL = 86400
local state = redis.pcall('HGET', prefix .. 'job:' .. id, 'state')
if type(state) ~= 'string' then
  state = 'unknown' -- no record, or a key of a wrong type
end
if state ~= 'ended' and redis.call('EXISTS', prefix .. 'celery-task-meta-' .. id) == 0 then
  -- DEL comes first: at maxmemory Redis refuses a write that may need memory only as the first
  -- write of a script. A cancel frees memory then.
  redis.call('DEL', prefix .. 'cancel:' .. id)
  redis.call('SET', prefix .. 'cancel:' .. id, 'cancel', 'EX', state == 'unknown' and math.min(ttl, UNKNOWN_TTL) or ttl)
  return state == 'waiting' and 'running' or state
end
return 'ended'
