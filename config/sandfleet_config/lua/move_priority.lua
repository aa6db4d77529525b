-- Give the queued jobs of a batch another priority: those of the next few members that are in no
-- list, or those of a part of a queue's list.
--
-- ARGV: prefix, batch, new step, position, largest number of jobs or messages, queue ("": the
--       batch's members), step of the list
-- Returns {next position (-1: the end is reached), number of jobs that have the new priority now,
-- number of queued jobs that are in a list}.
-- A message cannot be taken out of the middle of a list at a low price. So a second one is put into
-- the new list, and the record names its step: a claim drops the message in the old list. A list is
-- read from its left end, where claims do not change the positions. The oldest job is taken first
-- from the new list, too.
local prefix, batch, step, position, limit, queue, from = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6],
  ARGV[7]
-- include: prelude
-- include: parked
local function list_of(of_step)
  return prefix .. queue .. (of_step == '0' and '' or '\6\22' .. of_step)
end

local function move_members()
  local ids, moved, listed = try('LRANGE', prefix .. 'batch:' .. batch, position, position + limit - 1) or {}, 0, 0
  for _, id in ipairs(ids) do
    local job = prefix .. 'job:' .. id
    local facts = try('HMGET', job, 'state', 'step', 'message', 'parked') or {}
    if facts[1] == 'queued' and not facts[3] then
      listed = listed + 1
    elseif facts[1] == 'queued' and facts[2] ~= step then
      redis.call('HSET', job, 'step', step)
      local score = facts[4] and tonumber(try('ZSCORE', prefix .. facts[4], id) or nil)
      if score then
        redis.call('ZADD', prefix .. facts[4], score % PLACES + tonumber(step) * PLACES, id)
      end
      moved = moved + 1
    end
  end
  return { #ids < limit and -1 or position + #ids, moved, listed }
end

local function find_id(message)
  local is_json, decoded = pcall(cjson.decode, message)
  local headers = is_json and type(decoded) == 'table' and decoded.headers
  local id = type(headers) == 'table' and headers.id
  return type(id) == 'string' and id or nil
end

local function move_messages()
  local messages, moved = try('LRANGE', list_of(from), position, position + limit - 1) or {}, 0
  for _, message in ipairs(messages) do
    local id = find_id(message)
    local facts = id and try('HMGET', prefix .. 'job:' .. id, 'state', 'step', 'batch') or {}
    if facts[1] == 'queued' and facts[2] == from and facts[3] == batch and try('RPUSH', list_of(step), message) then
      redis.call('HSET', prefix .. 'job:' .. id, 'step', step)
      moved = moved + 1
    end
  end
  return { #messages < limit and -1 or position + #messages, moved, 0 }
end

if queue == '' then
  return move_members()
end
return move_messages()
