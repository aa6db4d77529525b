-- Check jobs that a producer waits for: does each have a record, and has it expired in the queue?
--
-- ARGV: prefix, then job ids
-- Returns {ms until the next of them expires in the queue (-1: none does), then "gone", "expired"
-- or "there" for each job}. A "gone" job has no record. An "expired" job is queued past its time:
-- the caller ends it (finish.lua with owner ""), as the sweep of a live worker does.
local prefix = ARGV[1]
-- include: prelude
local answers, soonest = { -1 }, -1
for at = 2, #ARGV do
  local facts = redis.pcall('HMGET', prefix .. 'job:' .. ARGV[at], 'state', 'expires')
  if facts.err then
    facts = {} -- a key of a wrong type counts as no record
  end
  local expires = tonumber(facts[2] or 0) or 0
  local found = facts[1] and 'there' or 'gone'
  if facts[1] == 'queued' and expires > 0 then
    if now > expires then
      found = 'expired'
    elseif soonest < 0 or expires - now < soonest then
      soonest = expires - now
    end
  end
  answers[at] = found
end
answers[1] = soonest
return answers
