-- Read the workers, the marks of operators, the names of queues, and counts. Changes nothing.
--
-- ARGV: prefix, largest number of workers, of marks of a kind, of queues
-- Returns {now (ms), workers, cordons, pauses, names of queues, delayed, parked, dead letters, number of
-- the newest ended run, runs and messages that did not count}. A worker is four items: its name, the end of its lease (ms), its status, and
-- what it has announced, where the status does not name its queues. A mark is two: host or queue, text.
-- A text that is too long to be one, or a key of a wrong type, counts as empty.
local prefix, max_workers, max_marks, max_queues = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local MAX_STATUS, MAX_ANNOUNCED, MAX_NAME, MAX_TEXT = 4096, 32768, 512, 4096 -- bytes
local MAX_COUNTED = 1000 -- batches and groups whose parked jobs are counted
-- include: prelude

local function read_announced(owner)
  local size = try('HSTRLEN', prefix .. 'hosts', owner) or 0
  return size > 0 and size <= MAX_ANNOUNCED and redis.call('HGET', prefix .. 'hosts', owner) or ''
end

local function read_workers()
  local found = {}
  local owners = try('ZREVRANGEBYSCORE', prefix .. 'owners', '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, max_workers) or {}
  for at = 1, #owners, 2 do
    local owner = owners[at]
    if #owner <= MAX_NAME then
      local status = try('GETRANGE', prefix .. 'status:' .. owner, 0, MAX_STATUS) or ''
      status = #status <= MAX_STATUS and status or ''
      local announced = status:find('"queues":', 1, true) and '' or read_announced(owner)
      for _, item in ipairs({ owner, owners[at + 1], status, announced }) do
        found[#found + 1] = item
      end
    end
  end
  return found
end

-- A scan ends when it has passed all, or so many: there are no more, but for those that are forged.
local function read_marks(name)
  local found, scanned = {}, try('HSCAN', prefix .. name, 0, 'COUNT', max_marks)
  local fields = scanned and scanned[2] or {}
  for at = 1, math.min(#fields, 2 * max_marks), 2 do
    if #fields[at] <= MAX_NAME then
      found[#found + 1] = fields[at]
      found[#found + 1] = #fields[at + 1] <= MAX_TEXT and fields[at + 1] or ''
    end
  end
  return found
end

local function read_queues()
  local key = prefix .. 'queues'
  local count = try('SCARD', key) or 0
  if count <= max_queues then
    return count > 0 and redis.call('SMEMBERS', key) or {}
  end
  return redis.call('SRANDMEMBER', key, max_queues)
end

local function count_parked()
  local total = 0
  for _, kind in ipairs({ { 'limited', 'parked:' }, { 'groups', 'awaiting:' } }) do
    for _, name in ipairs(try('ZRANGE', prefix .. kind[1], 0, MAX_COUNTED - 1) or {}) do
      total = total + (try('ZCARD', prefix .. kind[2] .. name) or 0)
    end
  end
  return total
end

-- Counts what was ever added to the stream, of which Redis keeps the newest only.
local function count_duplicates()
  local found, facts = 0, try('XINFO', 'STREAM', prefix .. 'duplicates') or {}
  for at = 1, #facts, 2 do
    if facts[at] == 'entries-added' or facts[at] == 'length' then -- before Redis 7: those that are kept
      found = math.max(found, facts[at + 1])
    end
  end
  return found
end

return { now, read_workers(), read_marks('cordons'), read_marks('paused'), read_queues(), try('ZCARD', prefix .. 'delayed') or 0,
  count_parked(), try('ZCARD', prefix .. 'dead') or 0, tonumber(try('GET', prefix .. 'ended_runs:last') or 0) or 0, count_duplicates() }
