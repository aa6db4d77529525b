-- Make dead letters due again, as if they had not been tried.
--
-- ARGV: prefix, ids...
-- Returns how many.
local prefix, count = ARGV[1], 0
-- include: prelude
-- include: batch_keys
-- include: webhooks
for at = 2, #ARGV do
  local id = ARGV[at]
  local webhook = prefix .. 'webhook:' .. id
  if try('ZREM', prefix .. 'webhooks:dead', id) == 1 and try('HDEL', webhook, 'first', 'attempts', 'token') then
    redis.call('EXPIRE', webhook, WEBHOOK_TTL)
    make_webhook_due(id)
    count = count + 1
  end
end
return count
