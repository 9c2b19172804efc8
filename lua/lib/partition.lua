-- Shared by every script that decides. Rust inserts this file after the `#!lua` line of a script that names it.

-- The partition's epoch, and the number that the next decision gets; nothing if the partition must not decide
-- (never initialised, so lost or foreign; or frozen).
local function open_books(meta)
  local m = redis.call('HMGET', meta, 'epoch', 'seq', 'frozen')
  if not m[1] or m[3] then return nil end
  return m[1], tonumber(m[2]) + 1
end

-- The time (ms): this server's own, read once per call, so that no process's clock decides anything. `given` is '' but in
-- tests, whose clock stands.
local function current_time(given)
  if given ~= '' then return given end
  local t = redis.call('TIME')
  return t[1] .. string.sub(string.format('%06d', t[2]), 1, 3)
end

-- The stored reply to an earlier request under the same idempotency key, marked as such; nothing if there is none.
-- The record is a list: fingerprint, then the reply (or the one word RUNNING).
local function replay(record, fingerprint)
  if fingerprint == '' then return nil end
  local prior = redis.call('LRANGE', record, 0, -1)
  if #prior == 0 then return nil end
  if prior[1] ~= fingerprint then return { 'KEY_REUSED' } end
  if prior[2] == 'RUNNING' then return { 'IN_PROGRESS' } end
  prior[1] = 'REPLAYED'
  return prior
end

-- The idempotency record of a decision, for its event, so that it outlives Redis: the key's digest, the fingerprint and the
-- reply, each part of which is preceded by its length ("4:PAID2:17"). Nothing if the request had no key.
local function record_parts(record, fingerprint, reply)
  if fingerprint == '' then return end
  local parts = {}
  for i = 1, #reply do
    local part = reply[i]
    if type(part) == 'number' then part = string.format('%d', part) end
    parts[i] = #part .. ':' .. part
  end
  return string.match(record, ':idem:(.*)$'), fingerprint, table.concat(parts)
end

-- The same as the fields of an event.
local function record_of(record, fingerprint, reply)
  local key, print, packed = record_parts(record, fingerprint, reply)
  if not key then return end
  return 'key', key, 'print', print, 'reply', packed
end

-- Files the reply under the idempotency key, if the request had one, and returns it. Below the line only.
local function remember(record, fingerprint, ttl_ms, reply)
  if fingerprint ~= '' then
    redis.call('DEL', record)
    write_in_pieces('RPUSH', record, { fingerprint, unpack(reply) })
    redis.call('PEXPIRE', record, ttl_ms)
  end
  return reply
end
