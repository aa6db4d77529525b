-- Forbid a job's start, durably, and say where it stands.
--
-- ARGV: prefix, job id, ttl of the mark in s
-- Returns "queued", "running" (a worker has it, started or not), "ended" or "unknown". The caller then ends a queued job itself (finish.lua with owner "") and
-- tells the workers about a running one; the mark makes both certain, whoever dies in between: it is looked at by every claim,
-- every beat and every take-over. An ended job gets no mark.
-- An unknown id may be a stock producer's job, which has no record before its first claim, so it gets a mark for a day. A job that is
-- submitted later under that id takes the mark away (submit.lua): it is another job.
local prefix, id, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local UNKNOWN_TTL = 86400
local state = redis.pcall('HGET', prefix .. 'job:' .. id, 'state')
if type(state) ~= 'string' then
  state = 'unknown' -- no record, or a key of a wrong type
end
if state ~= 'ended' and redis.call('EXISTS', prefix .. 'celery-task-meta-' .. id) == 0 then
  -- First: at maxmemory Redis refuses a write that may need memory only where it is a script's first. A cancel makes room there.
  redis.call('DEL', prefix .. 'cancel:' .. id)
  redis.call('SET', prefix .. 'cancel:' .. id, 'cancel', 'EX', state == 'unknown' and math.min(ttl, UNKNOWN_TTL) or ttl)
  return state == 'waiting' and 'running' or state
end
return 'ended'
