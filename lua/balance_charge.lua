#!lua
-- Adds money to a user's balance.
--
-- KEYS 1 meta    hash    the partition's books
--      2 outbox  stream
--      3 record  list    the idempotency record
--      4 user    hash    name balance entries tail open
-- ARGV 1 now (ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 user id  6 amount (won)
--      7 the most that the balance may be (won)
-- Returns {'CHARGED', epoch, seq, user name, balance}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or USER_NOT_FOUND | LIMIT
-- Emits balance_charged
--@include books
local meta, outbox, record, user = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, fingerprint, ttl, request_id, user_id, amount, limit =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local u = redis.call('HMGET', user, 'name', 'balance', 'entries', 'tail')
if not u[1] then return { 'USER_NOT_FOUND' } end
local before, entry_no = tonumber(u[2]), tonumber(u[3]) + 1
local after = before + amount
if after > limit then return { 'LIMIT' } end
local reply = { 'CHARGED', epoch, seq, u[1], after }
---- checks above, writes below -------------------------------------------------------------------------------------
local id = redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'balance_charged', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'user', user_id, 'entry_no', entry_no, 'amount', amount, 'before', before, 'after', after,
  'prev', u[4], record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', user, 'balance', after, 'entries', entry_no, 'tail', id)
return remember(record, fingerprint, ttl, reply)
