-- Share an image under a name, or share it no more; the pins of the name's objects change in the same step.
--
-- ARGV: prefix, name, digest (empty: share it no more), the most names, then the SHA-256 of each object of it
-- Returns 1, 0 if there was nothing to end, or -1 if there are too many names.
-- The pins of the name's earlier objects go. Who calls this has referred to these objects before, so they stay
-- for a day; see store_keep.lua. Of two pushes at once, the last counts, and its objects are pinned.
local prefix, name, digest, max_names, FIRST = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), 5
-- include: prelude
local shared, pins, owner = prefix .. 'shared_images', prefix .. 'store:pins', ' image:' .. name
if not try('HLEN', shared) then -- a forged key of a wrong type
  redis.call('DEL', shared)
end
if digest ~= '' and redis.call('HEXISTS', shared, name) == 0 and redis.call('HLEN', shared) >= max_names then
  return -1
end
for _, pin in ipairs(redis.call('ZRANGE', pins, 0, -1)) do
  if pin:sub(65) == owner then
    redis.call('ZREM', pins, pin)
  end
end
if digest == '' then
  return redis.call('HDEL', shared, name)
end
redis.call('HSET', shared, name, digest)
for at = FIRST, #ARGV do
  redis.call('ZADD', pins, 0, ARGV[at] .. owner)
end
return 1
