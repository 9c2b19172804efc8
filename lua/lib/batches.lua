-- Shared by the scripts that decide many requests in one call, in their order, each with its own answer: what an earlier one
-- of the batch changes, the later ones see, though nothing is written before the line.

-- What separates the parts of an event and of a reply, and the events of an entry: no part has a control character in it.
-- (One text is much less work than a list: for Lua, which writes it in one instruction, and for whoever reads it.)
local SEPARATOR, NEXT_EVENT = '\031', '\030'

-- The parts of an event or a reply.
local function parts_of(text)
  local parts = {}
  for part in string.gmatch(text .. SEPARATOR, '([^\031]*)\031') do parts[#parts + 1] = part end
  return parts
end

-- In a chain of balance changes: the one before is in the same entry.
local SAME_ENTRY = '='

-- A whole number as it is written everywhere: Lua itself would round it to 14 digits. (`%d` is exact up to 2^53 like any other
-- and takes less than half the time; a number that is left to `redis.call` is written the slow way.)
local function whole(number)
  return string.format('%d', number)
end

-- The stored replies to earlier requests under the same idempotency keys, those of this batch included.
local function new_records()
  local filed = {}
  return {
    -- As `replay` of one request.
    replay = function(record, fingerprint)
      if fingerprint == '' then return nil end
      local prior = filed[record]
      if not prior then
        local reply = replay(record, fingerprint)
        return reply and table.concat(reply, SEPARATOR)
      end
      if prior[1] ~= fingerprint then return 'KEY_REUSED' end
      return 'REPLAYED' .. SEPARATOR .. prior[2]
    end,
    -- Takes a reply down for its key, if its request had one.
    file = function(record, fingerprint, reply)
      if fingerprint ~= '' then filed[record] = { fingerprint, reply } end
    end,
    -- Writes what was taken down. Below the line only.
    write = function(ttl_ms)
      for record, filing in pairs(filed) do
        remember(record, filing[1], ttl_ms, parts_of(filing[2]))
      end
    end,
  }
end

-- An event of the batch, with the idempotency record of its request, if that has a key.
local function with_record(event, record, fingerprint, reply)
  if fingerprint == '' then return event end
  return table.concat({ event, record_parts(record, fingerprint, parts_of(reply)) }, SEPARATOR)
end

-- Writes the batch's events as one entry: the first write below the line. Returns the entry's id.
local function emit(outbox, epoch, events)
  return redis.call('XADD', outbox, '*', 'v', 2, 'epoch', epoch, 'events', table.concat(events, NEXT_EVENT))
end

-- The counters of products, as far as a batch needs them and has changed them.
local function new_counters(key)
  local known, changed = {}, {}
  return {
    -- Reads those of `ids` that are not known yet, in one go.
    load = function(ids)
      local missing = {}
      for i = 1, #ids do
        if known[ids[i]] == nil then
          known[ids[i]] = false
          missing[#missing + 1] = ids[i]
        end
      end
      if #missing == 0 then return end
      local values = redis.call('HMGET', key, unpack(missing))
      for i = 1, #missing do known[missing[i]] = tonumber(values[i]) or false end
    end,
    -- The number, or false where there is none.
    get = function(id) return known[id] end,
    add = function(id, n)
      known[id] = (known[id] or 0) + n
      changed[id] = true
    end,
    -- Below the line only.
    write = function()
      local fields = {}
      for id in pairs(changed) do
        fields[#fields + 1], fields[#fields + 2] = id, whole(known[id])
      end
      if #fields > 0 then redis.call('HSET', key, unpack(fields)) end
    end,
  }
end
