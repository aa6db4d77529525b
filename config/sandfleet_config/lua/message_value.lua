-- Find a value in the headers of a message without decoding it: that takes long for a large one.
--
-- `pattern` matches the value. A plain search for its name is quick; a pattern's is not.
local function find_value(message, name, pattern)
  local _, last = message:find('"' .. name .. '":', 1, true)
  return last and message:match('^ ?' .. pattern, last + 1)
end

local function find_id(message)
  return find_value(message, 'id', '"([^"]+)"')
end
