-- Ask whether another live worker has what a job needs, and has not found yet that it cannot run
-- it. One on a host that an operator has marked counts: the job waits for the end of the mark, and
-- does not end for want of a host.
--
-- ARGV: prefix, owner, needs as JSON, the job's queue, the job's id
-- Returns 1 or 0.
local prefix, owner = ARGV[1], ARGV[2]
-- include: prelude
-- include: placing
local placing = new_placing(prefix, owner, now)
local needs = placing.read_json(ARGV[3])
local refused_by = redis.pcall('HGET', prefix .. 'job:' .. ARGV[5], 'refused_by')
return needs and placing.find_other_host(needs, ARGV[4], type(refused_by) == 'string' and refused_by or '') and 1 or 0
