-- Read how many jobs wait in queues, and since when the oldest has. Changes nothing.
--
-- ARGV: prefix, then names of queues
-- Returns five items for each: the messages of steps 0, 3, 6 and 9, and when the oldest job at the end
-- that claims take from was submitted (ms; 0: not known). Messages are not sent to the caller.
local prefix = ARGV[1]
-- include: prelude
-- include: message_value

local function read_submitted(message)
  local id = find_id(message)
  local again = id and tonumber(try('HGET', prefix .. 'job:' .. id, 'submitted') or nil) -- of a later run
  local first = again or (tonumber(find_value(message, 'sandfleet-submitted', '([%d.]+)') or nil) or 0) * 1000
  return first > 0 and first <= now and math.floor(first) or nil
end

local found = {}
for at = 2, #ARGV do
  local oldest
  for _, step in ipairs({ '', '\6\0223', '\6\0226', '\6\0229' }) do
    local list = prefix .. ARGV[at] .. step
    local count = try('LLEN', list) or 0
    found[#found + 1] = count
    local submitted = count > 0 and read_submitted(redis.call('LINDEX', list, -1))
    if submitted and submitted < (oldest or math.huge) then
      oldest = submitted
    end
  end
  found[#found + 1] = oldest or 0
end
return found
