-- Queue webhooks of batches that are done although no script said so: an older worker ended the
-- last job.
--
-- ARGV: prefix, largest number of batches
-- Returns the number of batches that were checked.
local prefix = ARGV[1]
local MAX_IMPORTED = 1000
-- include: prelude
-- include: batch_keys
-- include: webhooks
local awaiting = prefix .. 'webhooks:awaiting'
local names = try('ZRANGEBYSCORE', awaiting, '-inf', now, 'LIMIT', 0, ARGV[2]) or {}
for _, name in ipairs(names) do
  local keys = batch_keys(name)
  local imported = import_ends(keys, MAX_IMPORTED)
  if not try('HGET', keys.counts, 'sealed') or try('EXISTS', keys.on_done) ~= 1 then
    redis.call('ZREM', awaiting, name) -- the next seal adds it again
  else
    redis.call('ZADD', awaiting, imported > 0 and now or now + CHECK_PAUSE, name)
    tell_if_done(name, keys)
  end
end
return #names
