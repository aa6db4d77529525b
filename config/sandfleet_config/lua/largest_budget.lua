-- Return the largest memory budget of the hosts that have a live worker, in bytes.
--
-- ARGV: prefix
-- Returns 0 if no worker lives, or if a live one does not report its host's budget.
local prefix = ARGV[1]
-- include: prelude
local largest = 0
for _, owner in ipairs(redis.pcall('ZRANGEBYSCORE', prefix .. 'owners', now, '+inf')) do
  local text = redis.pcall('HGET', prefix .. 'hosts', owner)
  local is_json, host = pcall(cjson.decode, type(text) == 'string' and text or '')
  local budget = is_json and type(host) == 'table' and tonumber(host.budget) or 0
  if budget <= 0 then
    return 0
  end
  largest = math.max(largest, budget)
end
return largest
