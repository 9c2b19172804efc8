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
