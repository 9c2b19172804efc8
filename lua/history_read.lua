#!lua flags=no-writes
-- Reads a user's newest balance changes from the outbox, which keeps them until Postgres has them. Each change names the entry
-- of the one before it. The walk ends at the first entry that was trimmed: Postgres has that one and all before it.
--
-- KEYS 1 user    hash    name balance entries tail open
--      2 outbox  stream
-- ARGV 1 maximum of steps  2 user id
-- Returns {'ENTRIES', '1' if the walk reached the maximum else '0', {field, value, ...} of an entry with one change, ...},
--         newest first, or USER_NOT_FOUND
--@include lists
--@include idempotency
--@include batch
local user, outbox, most, user_id = KEYS[1], KEYS[2], tonumber(ARGV[1]), ARGV[2]

-- The events of an entry.
local function events_of(entry)
  local events = {}
  for event in string.gmatch(entry .. NEXT_EVENT, '(.-)' .. NEXT_EVENT) do events[#events + 1] = event end
  return events
end

-- The entry of the previous change, from a packed event that changed the user's balance; nothing if the event did not.
local function change_before(packed)
  if not string.find(packed, SEPARATOR .. user_id .. SEPARATOR, 1, true) then return end
  local e = parts_of(packed)
  if e[1] == 'balance_charged' and e[5] == user_id then return e[10] end
  if e[1] == 'order_paid' and e[6] == user_id and e[16] ~= '0' then return e[20] end
  if e[1] == 'order_checked_out' and e[6] == user_id and e[10] ~= '0' then return e[20] end
end

local u = redis.call('HMGET', user, 'name', 'tail')
if not u[1] then return { 'USER_NOT_FOUND' } end
local reply, id = { 'ENTRIES', '0' }, u[2]
while id ~= '' do
  local entry = redis.call('XRANGE', outbox, id, id)[1]
  if not entry then break end
  local fields = entry[2]
  local changes, prev = {}, ''
  -- An entry of one event, of any version; others have their events where its kind is.
  if fields[3] == 'kind' then
    changes[1] = fields
    for i = 1, #fields, 2 do
      if fields[i] == 'prev' then prev = fields[i + 1] end
    end
  else
    local events = events_of(fields[6])
    for i = #events, 1, -1 do
      local before = change_before(events[i])
      if before then
        changes[#changes + 1] = { 'v', fields[2], 'epoch', fields[4], 'events', events[i] }
        prev = before
        if prev ~= SAME_ENTRY then break end
      end
    end
  end
  id = prev
  for i = 1, #changes do
    if #reply >= most + 2 then
      reply[2], id = '1', ''
      break
    end
    reply[#reply + 1] = changes[i]
  end
end
return reply
