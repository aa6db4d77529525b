-- Note that objects were deleted: their marks go, and their references if nothing has renewed them.
--
-- ARGV: prefix, unused_ms, names (SHA-256)...
local prefix, unused_ms, FIRST = ARGV[1], tonumber(ARGV[2]), 3
-- include: prelude
for at = FIRST, #ARGV do
  redis.call('ZREM', prefix .. 'store:deleting', ARGV[at])
  local reference = redis.call('ZSCORE', prefix .. 'store:refs', ARGV[at])
  if reference and tonumber(reference) <= now - unused_ms then
    redis.call('ZREM', prefix .. 'store:refs', ARGV[at])
  end
end
