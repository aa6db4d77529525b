-- Hold a batch, or let it go on.
--
-- ARGV: prefix, batch, "hold" or "release"
-- Returns {number of jobs that it let go, 1 if more are left: the caller repeats the call (a sweep
-- does so, too)}, or {-1, 0} if there is no such batch. A release also lifts a stop: failures are
-- counted anew, and the deadline is gone.
local prefix, batch, what = ARGV[1], ARGV[2], ARGV[3]
-- include: prelude
-- include: batch_keys
-- include: parked
local key = prefix .. 'limits:' .. batch
if redis.call('EXISTS', prefix .. 'batch:' .. batch) == 0 then
  return { -1, 0 }
end
if what == 'hold' then
  redis.call('HSET', key, 'hold', 1, 'set', 1)
  expire_limits(batch)
  return { 0, 0 }
end
local limits = read_limits(batch)
if not limits then
  return { 0, 0 }
end
redis.call('HDEL', key, 'hold')
limits.hold = nil
lift_stop(limits)
local count = let_go_free(limits, true)
local left = (try('ZCARD', prefix .. 'parked:' .. batch) or 0) > 0
if left then
  schedule('limited', now, batch)
end
return { count, left and not limits.at_most and 1 or 0 }
