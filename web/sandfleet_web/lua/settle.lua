-- Record how an attempt ended, and log it.
--
-- ARGV: prefix, id, token of the caller, result (delivered|failed|dead), ms until the next attempt,
--       reason, batch, endpoint
-- Returns 1, or 0 if another sender has the webhook now: then only a delivery counts.
local prefix, id, token, result, pause, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
-- include: prelude
-- include: batch_keys
-- include: webhooks
local due, dead, webhook = prefix .. 'webhooks:due', prefix .. 'webhooks:dead', prefix .. 'webhook:' .. id
if result ~= 'delivered' and try('HGET', webhook, 'token') ~= token then
  return 0
end
if result == 'delivered' then
  try('ZREM', due, id)
  try('ZREM', dead, id)
  redis.call('UNLINK', webhook)
elseif result == 'failed' then
  redis.call('HSET', webhook, 'reason', reason)
  redis.call('HDEL', webhook, 'token')
  redis.call('ZADD', due, now + pause, id)
  redis.call('EXPIRE', due, WEBHOOK_TTL)
else
  redis.call('HSET', webhook, 'reason', reason)
  redis.call('HDEL', webhook, 'token')
  redis.call('EXPIRE', webhook, WEBHOOK_TTL)
  try('ZREM', due, id)
  try('ZADD', dead, now, id)
  redis.call('EXPIRE', dead, WEBHOOK_TTL)
  while (try('ZCARD', dead) or 0) > MAX_WEBHOOKS do
    redis.call('UNLINK', prefix .. 'webhook:' .. redis.call('ZPOPMIN', dead)[1])
  end
end
log_webhook(id, ARGV[7], ARGV[8], result, reason)
return 1
