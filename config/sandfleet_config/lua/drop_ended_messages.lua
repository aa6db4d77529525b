-- Remove messages of ended jobs from the ends of a queue's lists, up to the first other message.
--
-- ARGV: prefix, queue, largest number of messages
-- Returns 1 if it stopped at a bound, so that a further call may remove more; otherwise 0. A claim
-- removes such messages too; both keep their specs (kept_specs.lua). This script keeps a queue from
-- filling up with them while no worker lives. The first other message stays, and stays first.
local prefix, queue, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local MAX_READ_BYTES = 1048576 -- of messages in one call: Redis serves no other client while it parses them
-- include: prelude
-- include: kept_specs
local taken, read_bytes, is_empty = 0, 0, true
for _, step in ipairs({ '0', '3', '6', '9' }) do
  local list = prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
  while taken < limit and read_bytes < MAX_READ_BYTES do
    local message = redis.pcall('LINDEX', list, -1)
    message = type(message) == 'string' and message or '' -- the list is empty, or a key of a wrong type
    read_bytes = read_bytes + #message
    local is_json, decoded = pcall(cjson.decode, message)
    local headers = is_json and type(decoded) == 'table' and decoded.headers
    local id = type(headers) == 'table' and headers.id
    if type(id) ~= 'string' or redis.pcall('HGET', prefix .. 'job:' .. id, 'state') ~= 'ended' then
      break
    end
    redis.call('RPOP', list)
    keep_ended(id, message)
    taken = taken + 1
  end
  is_empty = is_empty and redis.call('EXISTS', list) == 0
end
if is_empty then
  redis.pcall('SREM', prefix .. 'queues', queue)
end
return (taken >= limit or read_bytes >= MAX_READ_BYTES) and taken > 0 and 1 or 0
