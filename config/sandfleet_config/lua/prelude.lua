-- The clock and the safe call of every script that has the line "-- include: prelude".
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) -- ms, by Redis's clock

-- Like redis.call, but nil where the key has a wrong type.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    return nil
  end
  return reply
end
