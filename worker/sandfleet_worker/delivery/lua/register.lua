-- Give a worker its lease.
--
-- ARGV: prefix, owner, lease in ms, host ("" unknown), id of the host's boot
-- By the boot's id others know that the host's power was cut, and that no job killed its workers.
-- Returns when the lease ends (ms of Redis's clock).
-- include: prelude
local expires = now + tonumber(ARGV[3])
redis.call('ZREM', ARGV[1] .. 'owners', ARGV[2]) -- first, for the sake of a Redis at maxmemory: see beat.lua
redis.call('ZADD', ARGV[1] .. 'owners', expires, ARGV[2])
if ARGV[5] ~= '' then
  redis.pcall('SET', ARGV[1] .. 'boot:' .. ARGV[4], ARGV[5], 'EX', 8 * 86400) -- longer than a job may wait
end
return expires
