-- The stream of ended runs, from which the history of the fleet is made. A script includes it by
-- the line "-- include: ended_runs", after `prefix`, `try` and kept_specs.
--
-- ended_runs       stream: n (the run's number), run (its summary as JSON: see ended_run.py)
-- ended_runs:last  the number of the newest ended run
-- A number that the stream does not have is a run that the history has lost.
local MAX_SUMMARY, MAX_RUNS, RUNS_TTL, LAST_RUN_TTL = 1024, 250000, 7 * 86400, 30 * 86400
local MAX_RUNS_BYTES, FREE_RUNS_BYTES = 67108864, 8388608
local RUNS_BETWEEN_CHECKS, RUNS_BETWEEN_EXPIRES = 256, 32
local RESULT_TAIL, SPEC_DIGITS = 512, 16
local MAX_NUMBER = 1e15 -- a Lua number is exact below

-- Drops the oldest entries of a stream that takes more memory than it may.
local function bound_ended_runs(key)
  local bytes = try('MEMORY', 'USAGE', key) or 0
  local most = bytes > FREE_RUNS_BYTES and is_almost_full() and FREE_RUNS_BYTES or MAX_RUNS_BYTES
  if bytes > most then
    -- Somewhat more than needed, so that the next check finds nothing to drop.
    try('XTRIM', key, 'MAXLEN', '~', math.floor((try('XLEN', key) or 0) * most / bytes * 0.9))
  end
end

-- Returns a whole summary: a caller leaves out its beginning where it can be made of the job's id, code
-- and result (see `cut_summary` in run_summary.py). No output can be mistaken for these fields: a quote
-- in a string has a backslash before it.
local function complete_summary(summary, id, code, result)
  if summary == '' or summary:sub(1, 1) == '{' then
    return summary
  end
  local digest, spec = result:sub(-RESULT_TAIL):match(
    '"image_digest":"(sha256:%x+)","artifacts":%[%],"artifacts_lost":null,"spec_sha256":"(%x+)"')
  if not digest then
    return ''
  end
  return '{"id":"' .. id .. '","code":"' .. code .. '","digest":"' .. digest .. '","spec":"' .. spec:sub(1, SPEC_DIGITS) .. '",' .. summary
end

-- Returns the number of this ended run. Where the last one is no number, below 0 or too large,
-- numbering goes on after the newest entry of the stream. It leaves out one number, so that the history tells a gap:
-- runs may have ended meanwhile.
local function next_number(key)
  local last = prefix .. 'ended_runs:last'
  local number = try('INCR', last)
  if number and number > 0 and number < MAX_NUMBER then
    return number
  end
  local newest = ((try('XREVRANGE', key, '+', '-', 'COUNT', 1) or {})[1] or {})[2] or {}
  local known = newest[1] == 'n' and newest[2]:match('^%d+$') and tonumber(newest[2]) or 0
  known = known < MAX_NUMBER and known or 0
  redis.call('SET', last, string.format('%.0f', known + 2), 'EX', LAST_RUN_TTL) -- whatever its type was
  return known + 2
end

-- Numbers an ended run and appends its summary. Nothing that goes wrong here stops the call. At
-- maxmemory the run has a number alone.
local function add_ended_run(summary, is_full)
  local key = prefix .. 'ended_runs'
  local number = next_number(key)
  if not is_full and #summary <= MAX_SUMMARY then
    local entry = { 'MAXLEN', '~', MAX_RUNS, '*', 'n', string.format('%.0f', number), 'run', summary }
    if not try('XADD', key, 'NOMKSTREAM', unpack(entry)) then
      redis.call('DEL', key) -- there is none, it is no stream, or one with the last id that there can be
      try('XADD', key, unpack(entry))
      redis.call('EXPIRE', key, RUNS_TTL)
    end
  end
  if number % RUNS_BETWEEN_EXPIRES == 1 then -- each call costs a tenth of what a run costs here
    redis.call('EXPIRE', key, RUNS_TTL)
    redis.call('EXPIRE', prefix .. 'ended_runs:last', LAST_RUN_TTL)
  end
  if number % RUNS_BETWEEN_CHECKS == 0 then
    bound_ended_runs(key)
  end
end
