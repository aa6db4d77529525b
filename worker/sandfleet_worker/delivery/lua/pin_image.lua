-- Read which digest an image's name means for a batch, or record it if it is the first.
--
-- ARGV: prefix, batch, name, digest ("": only read)
-- Returns the digest that counts; "" where none is recorded. With too many names, none is recorded
-- more.
local prefix, batch, name, digest = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local MAX_NAMES = 1000
-- include: prelude

-- include: batch_keys
local pins = batch_keys(batch).pins
local found = try('HGET', pins, name)
if found then
  return found
elseif digest == '' then
  return ''
elseif (try('HLEN', pins) or MAX_NAMES) < MAX_NAMES then
  redis.call('HSET', pins, name, digest)
  redis.call('EXPIRE', pins, BATCH_TTL)
end
return digest
