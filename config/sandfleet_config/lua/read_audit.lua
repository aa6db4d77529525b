-- Read entries of the audit, newest first. Changes nothing.
--
-- ARGV: prefix, number of entries, id of the entry before which they are ("": the newest)
-- Returns {id, {field, value...}} of each; a value of more than 4,000 bytes is cut.
local key, count, before = ARGV[1] .. 'audit', ARGV[2], ARGV[3]
local MAX_VALUE, MAX_FIELDS = 4000, 32
-- include: prelude
local found = {}
for _, entry in ipairs(try('XREVRANGE', key, before == '' and '+' or '(' .. before, '-', 'COUNT', count) or {}) do
  local fields = {}
  for at = 1, math.min(#entry[2], MAX_FIELDS) do
    fields[at] = entry[2][at]:sub(1, MAX_VALUE)
  end
  found[#found + 1] = { entry[1], fields }
end
return found
