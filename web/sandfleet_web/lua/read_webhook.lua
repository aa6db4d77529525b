-- Reads the hash of a webhook. A script includes it by the line "-- include: read_webhook", after
-- prelude.
local MAX_CHARS = { batch = 1024, endpoint = 64, at = 32, total = 32, codes = 4096, attempts = 32, first = 32, reason = 1024 }
local FIELDS = { 'batch', 'endpoint', 'at', 'total', 'codes', 'attempts', 'first', 'reason' }

-- Returns the values of FIELDS, "" for what is absent; nil if there is no such webhook, or a field
-- is too long.
local function read_webhook(id)
  local webhook, values = prefix .. 'webhook:' .. id, {}
  if #id > 64 or not id:match('^msg_%x+$') or not try('HLEN', webhook) or redis.call('EXISTS', webhook) == 0 then
    return nil
  end
  for _, name in ipairs(FIELDS) do
    if redis.call('HSTRLEN', webhook, name) > MAX_CHARS[name] then
      return nil
    end
    values[#values + 1] = redis.call('HGET', webhook, name) or ''
  end
  return values
end
