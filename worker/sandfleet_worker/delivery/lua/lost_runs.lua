-- Tell which runs that this worker has ended Redis knows nothing of: a fail-over has undone both
-- their claims and their ends, and the jobs run again.
--
-- ARGV: prefix, owner, then 3 for each end: job id, claim id, run
-- Returns the ids of jobs with a lost run. A job without a record has none: it was forgotten.
local prefix, owner = ARGV[1], ARGV[2]
local DUPLICATES_TTL = 7 * 86400
-- include: prelude
local lost = {}
for at = 3, #ARGV, 3 do
  local id, claim, run = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local facts = try('HMGET', prefix .. 'job:' .. id, 'state', 'ended_by', 'run') or {}
  if facts[1] and facts[2] ~= claim and (tonumber(facts[3] or '1') or 1) <= run then
    try('XADD', prefix .. 'duplicates', 'MAXLEN', '~', 10000, '*', 'job', id, 'owner', owner, 'claim', claim,
      'kind', 'run', 'code', 'Redis lost the run')
    redis.call('EXPIRE', prefix .. 'duplicates', DUPLICATES_TTL)
    lost[#lost + 1] = id
  end
end
return lost
