-- Batches: a call that decides many requests, in their order, each with its own reply. A request sees the changes of those
-- before it in the batch, though nothing is written above the line.

-- Between the parts of an event and of a reply, and between the events of an entry; no part contains a control character.
-- (Lua writes one text in one instruction, and a text is much less work to read than a list.)
local SEPARATOR, NEXT_EVENT = '\031', '\030'

-- The parts of an event or a reply.
local function parts_of(text)
  local parts = {}
  for part in string.gmatch(text .. SEPARATOR, '([^\031]*)\031') do parts[#parts + 1] = part end
  return parts
end

-- Stands for the id of the entry before in a chain of balance changes: the previous change is in the same entry.
local SAME_ENTRY = '='

-- The idempotency records of a batch: those stored before, and those of its own requests.
local function new_records()
  local filed = {}
  return {
    -- Like `replay`, for one request of the batch; returns a packed reply.
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
    -- Keeps a reply for `write`, if its request has a key.
    file = function(record, fingerprint, reply)
      if fingerprint ~= '' then filed[record] = { fingerprint, reply } end
    end,
    -- Stores every reply that was filed. Below the line only.
    write = function(ttl_ms)
      for record, filing in pairs(filed) do
        remember(record, filing[1], ttl_ms, parts_of(filing[2]))
      end
    end,
  }
end

-- An event of the batch, with the idempotency record of its request if the request has a key.
local function with_record(event, record, fingerprint, reply)
  if fingerprint == '' then return event end
  return table.concat({ event, record_parts(record, fingerprint, parts_of(reply)) }, SEPARATOR)
end

-- Writes the batch's events as one entry, of version 3 if none is given, and returns the entry's id. The first write below the line.
local function emit(outbox, epoch, events, version)
  return redis.call('XADD', outbox, '*', 'v', version or 3, 'epoch', epoch, 'events', table.concat(events, NEXT_EVENT))
end
