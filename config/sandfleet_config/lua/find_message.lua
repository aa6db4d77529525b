-- Find the message of a job in a part of a queue's list, from the end that claims take from.
--
-- ARGV: key of the list, job id, number of messages to pass over, largest number to read
-- Returns {the number of messages before it in this part (-1: it is not here), number of messages
-- read}.
local list, id, offset, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local wanted = '"id":"' .. id .. '"'
local messages = redis.pcall('LRANGE', list, -(offset + limit), -(offset + 1))
if messages.err then
  return { -1, 0 } -- a key of a wrong type
end
for at = #messages, 1, -1 do
  -- Our messages and Celery's have the id in their headers, in the one form or the other.
  if messages[at]:find(wanted, 1, true) or messages[at]:find('"id": "' .. id .. '"', 1, true) then
    return { #messages - at, #messages - at + 1 }
  end
end
return { -1, #messages }
