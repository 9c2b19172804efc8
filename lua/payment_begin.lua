#!lua
-- Marks a PENDING order as being paid through an external gateway, before the gateway is asked. From now on neither cancel nor
-- expiry can close the order, only the gateway's outcome (order_pay, order_close), however long that takes.
--
-- KEYS 1 meta     hash    partition state
--      2 outbox   stream
--      3 record   list    idempotency record
--      4 order    hash
--      5 expiry   zset    order id by the end of its hold (ms)
--      6 gateway  zset    order id by the next check of its gateway payment (ms)
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 order id  6 user id
--      7 amount (won)  8 payment type  9 payment id  10 receipt  11 delay of the first check (ms)  12 the key's digest or ''
--     13 the provider's id of the payment, if it is known before the provider approves it, or ''
-- Returns {'STARTED', epoch, seq}
--      or {'REPLAYED', ...the settled reply} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or ORDER_NOT_FOUND | ALREADY_PAID | ALREADY_CLOSED | WRONG_AMOUNT
-- Emits payment_started
--@include lists
--@include partition
--@include idempotency
--@include payment
local meta, outbox, record, order, expiry, gateway = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local now, fingerprint, ttl, request_id, order_id, user_id, amount =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local payment_type, payment_id, receipt, key_digest, transaction = ARGV[8], ARGV[9], ARGV[10], ARGV[12], ARGV[13]
local due = whole(tonumber(now) + tonumber(ARGV[11]))

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local o = redis.call('HMGET', order, 'user', 'status', 'final', 'gateway')
if not o[1] or o[1] ~= user_id then return { 'ORDER_NOT_FOUND' } end
if o[2] == 'PAID' then return { 'ALREADY_PAID' } end
if o[2] ~= 'PENDING' then return { 'ALREADY_CLOSED' } end
if o[4] == 'STARTED' then return { 'IN_PROGRESS' } end
if amount ~= tonumber(o[3]) then return { 'WRONG_AMOUNT' } end
-- A version that would forget the provider's id must not project the event.
local version = transaction ~= '' and 4 or 1
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', version, 'kind', 'payment_started', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'amount', amount, 'type', payment_type,
  'payment', payment_id, 'receipt', receipt, 'transaction', transaction, record_of(record, fingerprint, { 'RUNNING' }))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', order, 'gateway', 'STARTED', 'gateway_at', now, 'receipt', receipt,
  'payment', pack_payment(payment_id, payment_type, '', '', ''), 'key', key_digest, 'fingerprint', fingerprint)
if transaction ~= '' then redis.call('HSET', order, 'transaction', transaction) end
redis.call('ZREM', expiry, order_id)
redis.call('ZADD', gateway, due, order_id)
remember(record, fingerprint, ttl, { 'RUNNING' })
return { 'STARTED', epoch, seq }
