-- Read the counts of a batch, and its ends after a cursor in the stream.
--
-- ARGV: prefix, batch, cursor ("": the newest end, and no end is read), largest number of ends
-- Returns {number of jobs, number of ended jobs, cursor of the last end that was read, the ends as
-- lines of id and run, number of imported ends, counts as fields and values}. Fewer ends than the
-- largest number: all ends were read.
local prefix, batch, after, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local MAX_IMPORTED, MAX_DROPPED = 1000, 200

-- include: prelude

-- include: batch_keys
local keys = batch_keys(batch)
local imported = import_ends(keys, MAX_IMPORTED)
drop_forgotten(keys, MAX_DROPPED, false)
local lines, cursor = {}, after
if after == '' then
  local newest = try('XREVRANGE', keys.ends, '+', '-', 'COUNT', 1) or {}
  cursor = newest[1] and newest[1][1] or '0-0'
else
  local read = try('XREAD', 'COUNT', limit, 'STREAMS', keys.ends, after) or {}
  for _, entry in ipairs(read[1] and read[1][2] or {}) do
    cursor = entry[1]
    lines[#lines + 1] = entry[2][2] .. ' ' .. entry[2][4]
  end
end
local total, ended = count_jobs(keys)
if imported > 0 and ended >= total then -- an older worker ended the last job, and set the TTL of older keys only
  local left = redis.call('TTL', keys.members)
  if left > 0 then
    redis.call('EXPIRE', keys.ends, left)
    redis.call('EXPIRE', keys.counts, left)
  end
end
return { total, ended, cursor, table.concat(lines, '\n'), imported, try('HGETALL', keys.counts) or {} }
