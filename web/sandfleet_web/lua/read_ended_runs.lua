-- Read the next entries of the stream of ended runs, and what its reader must know beside them.
--
-- ARGV: prefix, id of the last entry that was read, largest number of entries, largest bytes of a
--       summary, time (ms) up to which forgotten batches were read
-- Returns {time (ms), number of the newest ended run, id of the newest entry ("": no stream),
--          forgotten batches {name, ms, ...}, entries {id, number, summary, ...}}
-- An entry that is none of ours has no number, or a summary "": one that is too long is not sent.
local prefix, last, limit, most, since = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local AT_ONCE, MAX_FORGOTTEN, AHEAD = 50, 1000, 60000
-- include: prelude
local key = prefix .. 'ended_runs'
local entries, newest = {}, ''
if redis.call('EXISTS', key) == 1 then
  newest = try('XREVRANGE', key, '+', '-', 'COUNT', 1) or {} -- of a wrong type: the next ended run makes it anew
  newest = newest[1] and newest[1][1] or ''
end
while newest ~= '' and #entries < limit * 3 do
  -- (an error where `last` is the last id that there can be)
  local found = try('XRANGE', key, '(' .. last, '+', 'COUNT', math.min(AT_ONCE, limit - #entries / 3)) or {}
  for _, entry in ipairs(found) do
    local number, summary = '', ''
    local fields = entry[2]
    for at = 1, #fields - 1, 2 do
      if fields[at] == 'n' then
        number = fields[at + 1]
      elseif fields[at] == 'run' then
        summary = fields[at + 1]
      end
    end
    entries[#entries + 1] = entry[1]
    entries[#entries + 1] = #number <= 20 and number or ''
    entries[#entries + 1] = #summary <= most and summary or ''
    last = entry[1]
  end
  if #found < AT_ONCE then
    break
  end
end
local forgotten = try('ZRANGEBYSCORE', prefix .. 'ended_runs:forgotten', '(' .. since, now + AHEAD, 'WITHSCORES', 'LIMIT', 0,
  MAX_FORGOTTEN) or {}
return { now, try('GET', prefix .. 'ended_runs:last') or '', newest, forgotten, entries }
