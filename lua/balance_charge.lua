#!lua
-- Adds money to users' balances. Decides a batch of requests in their order.
--
-- KEYS 1 meta    hash    partition state
--      2 outbox  stream
--      then of each request
--        record  list    idempotency record
--        user    hash    name balance entries tail open ...
-- ARGV 1 now (ms) in tests, else ''  2 life of a record (ms)  3 maximum of a balance (won)
--      then of each request: fingerprint or '', request id, user id, amount (won)
-- Returns of each request, packed, {'CHARGED', epoch, seq, user name, balance}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or USER_NOT_FOUND | LIMIT_EXCEEDED (A record has no name, since its user may be forgotten: a repeat gets the current one.)
--      of the whole batch PARTITION_CLOSED
-- Emits balance_charged for each
--@include lists
--@include partition
--@include idempotency
--@include batch
local meta, outbox = KEYS[1], KEYS[2]
local now, ttl, limit = current_time(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local n = (#KEYS - 2) / 2

-- The reply of a record, with the user's name.
local function named(reply, user)
  local parts = parts_of(reply)
  if parts[2] ~= 'CHARGED' or parts[5] ~= '' then return reply end
  parts[5] = redis.call('HGET', user, 'name')
  return parts[5] and table.concat(parts, SEPARATOR) or 'USER_NOT_FOUND'
end

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local records, users, charged, replies, events = new_records(), {}, {}, {}, {}
for i = 1, n do
  local record, key = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local fingerprint, request_id, user_id, amount = unpack(ARGV, 4 * i, 4 * i + 3)
  local reply = records.replay(record, fingerprint)
  if reply then
    reply = named(reply, key)
  else
    local user = users[key]
    if not user then
      local u = redis.call('HMGET', key, 'name', 'balance', 'entries', 'tail')
      -- `won`: the balance as text; so are the entries.
      user = { name = u[1], balance = tonumber(u[2]), won = u[2], entries = u[3], tail = u[4] }
      users[key] = user
    end
    if not user.name then
      reply = 'USER_NOT_FOUND'
    elseif user.balance + amount > limit then
      reply = 'LIMIT_EXCEEDED'
    else
      local number, before = whole(seq), user.won
      user.balance = user.balance + amount
      user.won, user.entries = whole(user.balance), whole_again(user.entries + 1)
      reply = 'CHARGED' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. user.name .. SEPARATOR
        .. user.won
      local kept = reply
      if fingerprint ~= '' then
        kept = 'CHARGED' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. SEPARATOR .. user.won
        records.file(record, fingerprint, kept)
      end
      events[#events + 1] = with_record(
        'balance_charged' .. SEPARATOR .. number .. SEPARATOR .. now .. SEPARATOR .. request_id .. SEPARATOR .. user_id
          .. SEPARATOR .. user.entries .. SEPARATOR .. amount .. SEPARATOR .. before .. SEPARATOR .. user.won
          .. SEPARATOR .. user.tail,
        record, fingerprint, kept)
      if user.tail ~= SAME_ENTRY then charged[#charged + 1] = key end
      user.tail = SAME_ENTRY
      seq = seq + 1
    end
  end
  replies[i] = reply
end
if #events == 0 then return replies end
---- checks above, writes below -------------------------------------------------------------------------------------
local id = emit(outbox, epoch, events)
redis.call('HSET', meta, 'seq', whole(seq - 1))
for i = 1, #charged do
  local user = users[charged[i]]
  redis.call('HSET', charged[i], 'balance', user.won, 'entries', user.entries, 'tail', id)
end
records.write(ttl)
return replies
