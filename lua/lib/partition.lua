-- The state of a partition, and the time. Rust inserts this file below the `#!lua` line of every script that includes it.

-- The partition's epoch, the number of its next decision, and what changes with each user that is forgotten (nothing before the
-- first). Nothing if the partition must not decide: its state was never
-- written (lost, or another deployment's), or it is frozen.
local function begin_decision(meta)
  local m = redis.call('HMGET', meta, 'epoch', 'seq', 'frozen', 'forgotten')
  if not m[1] or m[3] then return nil end
  return m[1], tonumber(m[2]) + 1, m[4]
end

-- The time of this server, ms, read once per call: no client's clock decides anything. Tests pass a time as `given`, all
-- others ''.
local function current_time(given)
  if given ~= '' then return given end
  local t = redis.call('TIME')
  return t[1] .. string.sub(string.format('%06d', t[2]), 1, 3)
end
