-- Functions that queue a webhook when a batch is done: it is sealed, and the newest runs of all its
-- jobs have ended. A script includes them by the line "-- include: webhooks", after batch_keys.
--
-- on_done:<batch>    hash: endpoint; told, the newest end that a webhook was queued for
-- webhooks:due       sorted set: id of a webhook -> when a sender takes it next (ms)
-- webhook:<id>       hash, one webhook: batch, endpoint, at (ms), total, codes (JSON)
-- webhooks:awaiting  sorted set: batch that shall be told of and is not done -> when a sender
--                    checks it next (ms)
-- A key of a wrong type stops no script.
local WEBHOOK_TTL = 8 * 86400 -- s; a day of attempts, then 7 days as a dead letter
local MAX_WEBHOOKS, MAX_AWAITING, CHECK_PAUSE = 10000, 10000, 10000

local function log_webhook(id, batch, endpoint, result, reason)
  local log = prefix .. 'webhooks:log'
  try('XADD', log, 'MAXLEN', '~', MAX_WEBHOOKS, '*', 'id', id, 'batch', batch, 'endpoint', endpoint, 'result', result,
    'reason', reason)
  redis.call('EXPIRE', log, WEBHOOK_TTL)
end

local function find_codes(keys)
  local codes = {}
  local fields = try('HGETALL', keys.counts) or {}
  for at = 1, #fields, 2 do
    if fields[at]:match('^[A-Z_]+$') then
      codes[fields[at]] = tonumber(fields[at + 1]) or 0
    end
  end
  return codes
end

-- Makes a sender check the batch now and then. Workers of an older release queue no webhook.
local function await_done(name, keys)
  if try('EXISTS', keys.on_done) == 1 then
    local awaiting = prefix .. 'webhooks:awaiting'
    try('ZADD', awaiting, now + CHECK_PAUSE, name)
    try('ZREMRANGEBYRANK', awaiting, 0, -MAX_AWAITING - 1)
    redis.call('EXPIRE', awaiting, BATCH_TTL)
  end
end

-- Drops the webhook that has been due for longest where there are too many: no sender runs.
local function make_webhook_due(id)
  local due = prefix .. 'webhooks:due'
  if (try('ZCARD', due) or 0) >= MAX_WEBHOOKS then
    local oldest = try('ZPOPMIN', due) or {}
    if oldest[1] then
      redis.call('DEL', prefix .. 'webhook:' .. oldest[1])
      log_webhook(oldest[1], '', '', 'dropped', 'more than ' .. MAX_WEBHOOKS .. ' webhooks were due')
    end
  end
  try('ZADD', due, now, id)
  redis.call('EXPIRE', due, WEBHOOK_TTL)
end

-- Queues a webhook if the batch is done, and none was queued since its newest end. A retry of a job
-- and a new job each add an end, so that one follows again.
local function tell_if_done(name, keys)
  local facts = try('HMGET', keys.on_done, 'endpoint', 'told') or {}
  if not facts[1] or not try('HGET', keys.counts, 'sealed') then
    return
  end
  local total, ended = count_jobs(keys)
  local newest = (try('XREVRANGE', keys.ends, '+', '-', 'COUNT', 1) or {})[1]
  local untold = try('XRANGE', keys.ends, facts[2] and '(' .. facts[2] or '-', '+', 'COUNT', 1) or {}
  if ended < total or not newest or #untold == 0 then
    return
  end
  local id = 'msg_' .. redis.sha1hex(name .. '\n' .. newest[1])
  local webhook = prefix .. 'webhook:' .. id
  redis.call('DEL', webhook)
  redis.call('HSET', webhook, 'batch', name, 'endpoint', facts[1], 'at', now, 'total', total, 'codes', cjson.encode(find_codes(keys)))
  redis.call('EXPIRE', webhook, WEBHOOK_TTL)
  redis.call('HSET', keys.on_done, 'told', newest[1])
  make_webhook_due(id)
  try('ZREM', prefix .. 'webhooks:awaiting', name)
end
