-- Read the ids of jobs in a part of a queue's list, from the end that claims take from, and count
-- those that expire before a time. Changes nothing.
--
-- ARGV: prefix, key of the list, number of messages to pass over, largest number to read, time (ms;
--       0: none is counted), "newest" to start at the other end: what claims take meanwhile does not
--       shift what is read there
-- Returns {number of messages read, number of jobs that expire, then the ids}. A message without an id
-- has the id "".
local prefix, list, offset, limit, before = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
-- include: prelude
-- include: message_value
local first, last = -(offset + limit), -(offset + 1)
if ARGV[6] == 'newest' then
  first, last = offset, offset + limit - 1
end
local messages = try('LRANGE', list, first, last) or {}
local answer = { #messages, 0 }
for at = #messages, 1, -1 do
  local id = find_id(messages[at]) or ''
  id = #id <= 128 and id or ''
  if before > 0 and id ~= '' then
    local expires = tonumber(try('HGET', prefix .. 'job:' .. id, 'expires') or 0) or 0
    answer[2] = answer[2] + (expires > 0 and expires < before and 1 or 0)
  end
  answer[#answer + 1] = id
end
return answer
