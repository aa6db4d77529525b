-- Seal a batch: all of its jobs have been submitted. The next submit to it removes the seal.
--
-- ARGV: prefix, batch, name of the endpoint that is told when the batch is done ("" or absent: as
--       before)
-- Returns 1, or 0 if there is no such batch.
local members, counts = ARGV[1] .. 'batch:' .. ARGV[2], ARGV[1] .. 'counts:' .. ARGV[2]
local ttl = redis.call('TTL', members)
if ttl == -2 then
  return 0
end
redis.call('HSET', counts, 'sealed', '1')
if ttl > 0 then
  redis.call('EXPIRE', counts, ttl)
end
local prefix, batch, endpoint = ARGV[1], ARGV[2], ARGV[3] or ''
-- include: prelude
-- include: batch_keys
-- include: webhooks
local keys = batch_keys(batch)
if endpoint ~= '' then
  if not try('HSET', keys.on_done, 'endpoint', endpoint) then -- a key of a wrong type
    redis.call('DEL', keys.on_done)
    redis.call('HSET', keys.on_done, 'endpoint', endpoint)
  end
  redis.call('EXPIRE', keys.on_done, ttl > 0 and ttl or BATCH_TTL)
end
await_done(batch, keys)
tell_if_done(batch, keys)
-- Jobs that wait for the batch start once it is sealed: a sweep checks them now. See after.lua.
for _, group in ipairs(redis.pcall('SMEMBERS', ARGV[1] .. 'awaited:batch:' .. ARGV[2])) do
  redis.pcall('ZADD', ARGV[1] .. 'groups', 'XX', 0, group)
end
return 1
