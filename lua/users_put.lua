#!lua
-- Creates users with ids from elsewhere, or changes their names. A user without balance entries gets the opening balance as its
-- first entry; one that has any keeps its balance. A user that was forgotten stays so.
--
-- KEYS 1 meta    hash    partition state
--      2 outbox  stream
--      3 record  list    idempotency record
--      4.. user  hash    one per user, each another
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id
--      then of each user: id, name, opening balance (won)
-- Returns {'UPDATED', epoch, seq, of each user 'created', 'changed', 'unchanged' or 'forgotten', and its balance}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or {'UNCHANGED', of each user the same}
-- Emits users_put, and balance_charged for each opening balance
--@include lists
--@include partition
--@include idempotency
--@include batch
local meta, outbox, record = KEYS[1], KEYS[2], KEYS[3]
local now, fingerprint, ttl, request_id = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
-- What the reply says of each user; the users of the event; the first balance entries; the users to write.
local outcomes, rows, openings, writes = {}, {}, {}, {}
for i = 4, #KEYS do
  local user_id, name, opening = unpack(ARGV, 3 * i - 7, 3 * i - 5)
  local u = redis.call('HMGET', KEYS[i], 'name', 'balance', 'entries')
  local outcome, balance = 'unchanged', u[2] or '0'
  if u[2] and not u[1] then
    outcome = 'forgotten'
  else
    local opens = opening ~= '0' and (not u[2] or u[3] == '0')
    if not u[1] then
      outcome = 'created'
    elseif opens or u[1] ~= name then
      outcome = 'changed'
    end
    if opens then
      balance = opening
      openings[#openings + 1] = { user_id, opening }
    end
    if outcome ~= 'unchanged' then
      rows[#rows + 1] = user_id .. SEPARATOR .. (u[1] and '0' or '1') .. SEPARATOR .. name
      writes[#writes + 1] = { KEYS[i], name, balance, not u[1], opens }
    end
  end
  outcomes[#outcomes + 1], outcomes[#outcomes + 2] = outcome, balance
end
if #rows == 0 then return { 'UNCHANGED', unpack(outcomes) } end
local entries = {}
for i = 1, #openings do
  local user_id, won = openings[i][1], openings[i][2]
  entries[i] = 'balance_charged' .. SEPARATOR .. whole(seq + i) .. SEPARATOR .. now .. SEPARATOR .. request_id .. SEPARATOR
    .. user_id .. SEPARATOR .. '1' .. SEPARATOR .. won .. SEPARATOR .. '0' .. SEPARATOR .. won .. SEPARATOR
end
local last = whole(seq + #openings)
local reply = { 'UPDATED', epoch, last, unpack(outcomes) }
---- checks above, writes below -------------------------------------------------------------------------------------
-- A version that does not know the event must not project it.
redis.call('XADD', outbox, '*', 'v', 5, 'kind', 'users_put', 'epoch', epoch, 'seq', whole(seq), 'at', now,
  'rid', request_id, 'users', table.concat(rows, NEXT_EVENT), record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', whole(seq))
local tail = ''
if #entries > 0 then
  tail = emit(outbox, epoch, entries)
  redis.call('HSET', meta, 'seq', last)
end
for i = 1, #writes do
  local name, balance, is_new, opens = unpack(writes[i], 2, 5)
  if is_new then
    redis.call('HSET', writes[i][1], 'name', name, 'balance', balance, 'entries', opens and 1 or 0, 'tail', opens and tail or '',
      'open', 0)
  elseif opens then
    redis.call('HSET', writes[i][1], 'name', name, 'balance', balance, 'entries', 1, 'tail', tail)
  else
    redis.call('HSET', writes[i][1], 'name', name)
  end
end
return remember(record, fingerprint, ttl, reply)
