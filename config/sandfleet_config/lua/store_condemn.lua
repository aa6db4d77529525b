-- Choose those objects that nothing refers to, and mark them as being deleted.
--
-- ARGV: prefix, ms that a mark lives (0: set none, only tell), unused_ms, names (SHA-256) of
--       objects that are older than unused_ms by the store's clock...
-- Returns the names of those that may be deleted: the reference to them ended unused_ms ago or
-- never was, and no name is pinned to them.
local prefix, mark_ms, unused_ms, FIRST = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 4
-- include: prelude
local refs, pins, deleting = prefix .. 'store:refs', prefix .. 'store:pins', prefix .. 'store:deleting'
local answer = {}
for at = FIRST, #ARGV do
  local name = ARGV[at]
  local reference = tonumber(redis.call('ZSCORE', refs, name) or 0)
  local pinned = redis.call('ZRANGEBYLEX', pins, '[' .. name .. ' ', '(' .. name .. '!', 'LIMIT', 0, 1)
  if reference <= now - unused_ms and #pinned == 0 then
    answer[#answer + 1] = name
    if mark_ms > 0 then
      redis.call('ZADD', deleting, now + mark_ms, name)
    end
  end
end
if mark_ms > 0 then
  redis.call('ZREMRANGEBYSCORE', deleting, '-inf', now)
  redis.call('PEXPIRE', deleting, mark_ms)
end
return answer
