-- Read the mark on a queue, and those on hosts. Changes nothing.
--
-- ARGV: prefix, queue, then hosts
-- Returns {queue, mark} or {}, and host and mark for each host that has one. A text that is too long to
-- be a mark counts as empty.
local prefix, queue = ARGV[1], ARGV[2]
local MAX_TEXT = 4096
-- include: prelude
local function read_mark(key, name)
  if try('HEXISTS', prefix .. key, name) ~= 1 then
    return {}
  end
  local size = redis.call('HSTRLEN', prefix .. key, name)
  return { name, size <= MAX_TEXT and redis.call('HGET', prefix .. key, name) or '' }
end

local cordons = {}
for at = 3, #ARGV do
  for _, part in ipairs(read_mark('cordons', ARGV[at])) do
    cordons[#cordons + 1] = part
  end
end
return { read_mark('paused', queue), cordons }
