-- Take webhooks that are due, for the time of a lease. If the caller dies, another sender takes
-- them after it.
--
-- ARGV: prefix, largest number, lease (ms), token of the caller, largest number of one endpoint,
--       endpoints that the caller sends to now, each as often as it does, as JSON
-- Returns {number of unusable webhooks that were deleted, {id, FIELDS of read_webhook...}...}
local prefix, limit, lease, token, at_once = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local MAX_READ, PASS = 500, 5000
-- include: prelude
-- include: batch_keys
-- include: webhooks
-- include: read_webhook
local due = prefix .. 'webhooks:due'
local sending = {}
for _, name in ipairs(cjson.decode(ARGV[6])) do
  sending[name] = (sending[name] or 0) + 1
end

local taken, passed, unusable = {}, {}, 0
local ids = try('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, MAX_READ) or {}
for _, id in ipairs(ids) do
  if #taken >= limit then
    break
  end
  local values = read_webhook(id)
  if not values then
    redis.call('ZREM', due, id)
    redis.call('UNLINK', prefix .. 'webhook:' .. id)
    unusable = unusable + 1
  elseif (sending[values[2]] or 0) >= at_once then
    passed[#passed + 1] = id
  else
    sending[values[2]] = (sending[values[2]] or 0) + 1
    local attempts, first = (tonumber(values[6]) or 0) + 1, tonumber(values[7])
    -- One in the future is forged: the webhook would never be given up.
    values[6], values[7] = string.format('%.0f', attempts), string.format('%.0f', first and math.min(first, now) or now)
    local webhook = prefix .. 'webhook:' .. id
    redis.call('HSET', webhook, 'token', token, 'attempts', values[6], 'first', values[7])
    redis.call('EXPIRE', webhook, WEBHOOK_TTL)
    redis.call('ZADD', due, now + lease, id)
    table.insert(values, 1, id)
    taken[#taken + 1] = values
  end
end
if #ids == MAX_READ then -- many wait for one slow endpoint: those of others come next
  for _, id in ipairs(passed) do
    redis.call('ZADD', due, now + PASS, id)
  end
end
table.insert(taken, 1, unusable)
return taken
