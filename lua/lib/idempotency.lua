-- Idempotency records: the stored replies to requests that had an idempotency key. A record is a list: the fingerprint of the
-- request, then its reply, or the single code RUNNING.

-- The stored reply to an earlier request under the same key, with REPLAYED before it; nothing if there is none.
local function replay(record, fingerprint)
  if fingerprint == '' then return nil end
  local prior = redis.call('LRANGE', record, 0, -1)
  if #prior == 0 then return nil end
  if prior[1] ~= fingerprint then return { 'KEY_REUSED' } end
  if prior[2] == 'RUNNING' then return { 'IN_PROGRESS' } end
  prior[1] = 'REPLAYED'
  return prior
end

-- A record for the event of its decision, so that it outlives Redis: the digest of the key, the fingerprint and the reply, each
-- part of the reply after its length ("4:PAID2:17"). Nothing if the request had no key.
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

-- Stores the reply under the request's key, if it has one, and returns the reply. Below the line only.
local function remember(record, fingerprint, ttl_ms, reply)
  if fingerprint ~= '' then
    redis.call('DEL', record)
    write_in_chunks('RPUSH', record, { fingerprint, unpack(reply) })
    redis.call('PEXPIRE', record, ttl_ms)
  end
  return reply
end
