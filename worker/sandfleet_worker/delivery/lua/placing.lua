-- The needs of a job, and the live hosts that have them. A part of claim.lua and other_host.lua.
--
-- A host says in the hash `hosts` what it has, under its worker's name: host, queues (patterns),
-- contract, ceilings, labels and has_all_images, has_all_datasets and mounts_datasets. The names
-- and digests of its images are the set images:<owner>, and those of its datasets, with /data/
-- before each. A job says in the field `needs` of its record: contract, image, requires, datasets,
-- and the limits that it asks for, by the names of the ceilings. pull_from are the registries and
-- names that a host pulls, each as patterns of both: see image_names.py. A worker of an older
-- release says nothing: it counts as one that has everything of contract 2.
local function new_placing(prefix, owner, now)
  local UNTOLD_CONTRACT, CPU_PERIOD = 2, 100000 -- us
  local LIMITS = { memory_bytes = '%s of memory', cpu_quota = '%s cores', pids_limit = '%s processes and threads',
    disk_bytes = '%s of disk', timeout = 'a timeout of %s s', grace = 'a grace of %s s', output_bytes = '%s of output a stream' }
  local SIZES = { { 1073741824, 'GiB' }, { 1048576, 'MiB' }, { 1024, 'KiB' } }
  local entries, others, placing = {}, nil, {}

  function placing.read_json(text)
    local is_json, found = pcall(cjson.decode, text)
    return is_json and type(found) == 'table' and found or nil
  end

  -- Returns what a worker says about its host: nil where it says nothing.
  function placing.read_host(name)
    if entries[name] == nil then
      local text = redis.pcall('HGET', prefix .. 'hosts', name)
      local found = type(text) == 'string' and placing.read_json(text) or false
      for _, part in ipairs({ 'labels', 'ceilings' }) do
        if found and type(found[part]) ~= 'table' then -- of no release that we know
          found[part] = {}
        end
      end
      entries[name] = found
    end
    return entries[name] or nil
  end

  local function list_others()
    if not others then
      others = {}
      for _, name in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'owners', now, '+inf')) do
        if name ~= owner then
          others[#others + 1] = name
        end
      end
    end
    return others
  end

  -- Returns the host of worker `name`.
  local function find_host(name)
    return name:match('^(.*):[^:]*:[^:]*$')
  end

  -- Whether an operator has marked the host (cordon, drain): it starts no job.
  local function is_marked(host)
    return host ~= nil and redis.pcall('HEXISTS', prefix .. 'cordons', host) == 1
  end

  -- Whether a worker of another host lives that may start jobs.
  function placing.is_other_host_alive(host)
    for _, name in ipairs(list_others()) do
      local other = find_host(name)
      if other ~= host and not is_marked(other) then
        return true
      end
    end
    return false
  end

  -- Whether a glob pattern matches.
  local function matches(pattern, text)
    local plain = pattern:gsub('[%^%$%(%)%%%.%+%-]', '%%%0'):gsub('%*', '.*'):gsub('%?', '.'):gsub('%[!', '[^')
    local is_pattern, found = pcall(string.match, text, '^' .. plain .. '$')
    return not is_pattern or found ~= nil -- what cannot be read may match
  end

  local function is_here(name, part)
    return redis.pcall('SISMEMBER', prefix .. 'images:' .. name, part) ~= 0
  end

  -- Whether the host of worker `name` has all parts of a reference, such as name@digest; `before`
  -- stands before each in its set.
  local function has_parts(name, reference, before)
    for part in reference:gmatch('[^@]+') do
      if not is_here(name, before .. part) then
        return false
      end
    end
    return true
  end

  -- Whether the host of worker `name` has the image, or pulls it from its registry.
  local function has_image(name, host, image)
    local registry, path = image:match('^docker://([^/]+)/([^@]+)')
    if not registry then
      return has_parts(name, image, '')
    elseif is_here(name, image:match('@(.+)$') or image) then
      return true
    end
    for _, pattern in ipairs(type(host.pull_from) == 'table' and host.pull_from or {}) do
      if type(pattern) == 'table' and matches(tostring(pattern[1]), registry)
        and (matches(tostring(pattern[2]), path) or matches(tostring(pattern[2]), (path:gsub(':[^:]*$', '')))) then
        return true
      end
    end
    return false
  end

  function placing.format_bytes(count)
    for _, size in ipairs(SIZES) do
      if count >= size[1] then
        return (string.format('%.2f', count / size[1]):gsub('%.?0+$', '')) .. ' ' .. size[2]
      end
    end
    return string.format('%.0f', count) .. ' bytes'
  end

  local function describe(name, value)
    if name:match('bytes$') then
      return LIMITS[name]:format(placing.format_bytes(value))
    end
    return LIMITS[name]:format(string.format('%.14g', name == 'cpu_quota' and value / CPU_PERIOD or value))
  end

  local function find_missing_dataset(name, host, datasets)
    if type(datasets) ~= 'table' then
      return nil
    elseif host.mounts_datasets == false then
      return 'a runsc that mounts datasets'
    end
    for _, dataset in ipairs(host.has_all_datasets and datasets or {}) do
      if not has_parts(name, tostring(dataset), '/data/') then
        return 'dataset ' .. tostring(dataset)
      end
    end
    return nil
  end

  -- Returns which kind of thing the host of worker `name` lacks for a job ("contract", "label",
  -- "ceiling", "image", "dataset"), and its text.
  function placing.find_lack(name, needs)
    local host = placing.read_host(name)
    local contract = tonumber(needs.contract) or 1
    if contract > (host and tonumber(host.contract) or UNTOLD_CONTRACT) then
      return 'contract', 'contract version ' .. contract
    elseif not host then
      return nil
    end
    for key, value in pairs(type(needs.requires) == 'table' and needs.requires or {}) do
      if host.labels[key] ~= value then
        return 'label', key .. '=' .. tostring(value)
      end
    end
    for key, ceiling in pairs(host.ceilings) do
      if LIMITS[key] and (tonumber(needs[key]) or 0) > (tonumber(ceiling) or math.huge) then
        return 'ceiling', describe(key, tonumber(needs[key]))
      end
    end
    if host.has_all_images and type(needs.image) == 'string' and not has_image(name, host, needs.image) then
      return 'image', 'image ' .. needs.image
    end
    local dataset = find_missing_dataset(name, host, needs.datasets)
    if dataset then
      return 'dataset', dataset
    end
    return nil
  end

  local function takes_from(name, queue)
    local host = placing.read_host(name)
    if not host or type(host.queues) ~= 'table' then
      return true
    end
    for _, pattern in ipairs(host.queues) do
      if matches(tostring(pattern), queue) then
        return true
      end
    end
    return false
  end

  -- Returns "free" where another live worker can run the job, "marked" where only workers of hosts
  -- can that an operator has marked, else nil. Those that `refused_by` names do not count.
  function placing.find_other_host(needs, queue, refused_by)
    local refused, found = ' ' .. (refused_by or ''), nil
    for _, name in ipairs(list_others()) do
      if not refused:find(' ' .. name .. ' ', 1, true) and takes_from(name, queue) and not placing.find_lack(name, needs) then
        if not is_marked(find_host(name)) then
          return 'free'
        end
        found = 'marked'
      end
    end
    return found
  end

  -- Says why no live host can run a job that waits for a label or a contract version; `kind` and
  -- `text` are what this one lacks.
  function placing.tell_nobody(needs, kind, text)
    if kind == 'contract' then
      return 'no live host speaks ' .. text
    end
    local alone = { contract = 1, requires = needs.requires }
    for _, name in ipairs(list_others()) do
      if not placing.find_lack(name, alone) then
        return 'no live host with ' .. text .. ' has all that the job needs'
      end
    end
    return 'no live host has ' .. text
  end

  return placing
end
