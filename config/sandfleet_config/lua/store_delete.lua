-- Delete one object from Redis.
--
-- ARGV: prefix, name (SHA-256)
-- Returns the number of deleted objects, 0 or 1.
local prefix, name = ARGV[1], ARGV[2]
-- include: prelude

-- include: store_objects
forget_expired()
forget_object(name)
return redis.call('DEL', prefix .. 'store:object:' .. name)
