-- Take messages of jobs that ended in the queue off a part of a list, wherever they stand, and keep
-- their specs.
--
-- ARGV: prefix, queue, step (0|3|6|9), number of messages to pass over from the right end, largest
--       number to read
-- Returns {number of messages to pass over in the next call (-1: the end of the list), number of
-- those taken}. A removal costs Redis time in proportion to its place, so fewer are made by one
-- call far from the end.
local prefix, queue, step, offset, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local MAX_READ_BYTES, MAX_STEPS = 1048576, 200000 -- messages that all removals of a call pass over
-- include: prelude
-- include: kept_specs
local list = prefix .. queue .. (step == '0' and '' or '\6\22' .. step)
local taken, passed, read_bytes, steps = 0, 0, 0, 0
local messages = try('LRANGE', list, -(offset + limit), -(offset + 1)) or {}
for at = #messages, 1, -1 do
  local message = messages[at]
  read_bytes = read_bytes + #message
  if read_bytes > MAX_READ_BYTES and passed + taken > 0 then
    return { offset + passed, taken }
  end
  local is_json, decoded = pcall(cjson.decode, message)
  local headers = is_json and type(decoded) == 'table' and decoded.headers
  local id = type(headers) == 'table' and headers.id
  local facts = type(id) == 'string' and try('HMGET', prefix .. 'job:' .. id, 'state', 'in_queue') or {}
  if facts[1] == 'ended' and facts[2] then
    if steps + offset + passed > MAX_STEPS and taken > 0 then
      return { offset + passed, taken }
    end
    steps = steps + offset + passed
    redis.call('LREM', list, -1, message)
    keep_ended(id, message)
    taken = taken + 1
  else
    passed = passed + 1
  end
end
return { #messages < limit and -1 or offset + passed, taken }
