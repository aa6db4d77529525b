-- Read the newest dead letters.
--
-- ARGV: prefix, largest number
-- Returns {id, ms of its end, FIELDS of read_webhook...} of each.
local prefix = ARGV[1]
-- include: prelude
-- include: read_webhook
local found = {}
local ids = try('ZREVRANGE', prefix .. 'webhooks:dead', 0, ARGV[2] - 1, 'WITHSCORES') or {}
for at = 1, #ids, 2 do
  local values = read_webhook(ids[at])
  if values then
    table.insert(values, 1, ids[at + 1])
    table.insert(values, 1, ids[at])
    found[#found + 1] = values
  end
end
return found
