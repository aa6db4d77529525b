-- Look at jobs that somebody waits for.
--
-- ARGV: prefix, then job ids
-- Returns {ms until the next of them expires in the queue (-1: none will), then for each job "gone", "expired" or "there"}.
-- "gone" has no record; "expired" is still queued past its time: the caller ends it (finish.lua with owner ""), as any worker's
-- sweep would, if one lived.
local prefix = ARGV[1]
-- include: prelude
local answers, soonest = { -1 }, -1
for at = 2, #ARGV do
  local facts = redis.pcall('HMGET', prefix .. 'job:' .. ARGV[at], 'state', 'expires')
  if facts.err then
    facts = {} -- a key of a wrong type is no record, and must not hide the others
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
