#!lua
-- Records how a gateway payment finished that was still open after its order was decided: the money went back, or was never
-- taken; or, after an operator's decision, that the gateway says the same, or never confirmed it.
--
-- KEYS 1 meta     hash    partition state
--      2 outbox   stream
--      3 order    hash
--      4 gateway  zset    order id by the next check of its gateway payment (ms)
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 order id  4 user id  5 receipt
--      6 REFUNDED | DECLINED (of REFUND_DUE and WATCHED)  SETTLED | DISPUTED (of UNCONFIRMED)
--      7 the gateway's transaction id or ''
-- Returns {'FINISHED', epoch, seq} or NOT_OPEN (or parts of the order are due: refund_finish) | PARTITION_CLOSED
-- Emits payment_ended
--@include partition
local meta, outbox, order, gateway = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, request_id, order_id, user_id, receipt, outcome, transaction =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local o = redis.call('HMGET', order, 'gateway', 'receipt', 'transaction', 'due')
local of_paid = outcome == 'SETTLED' or outcome == 'DISPUTED'
local open = of_paid and o[1] == 'UNCONFIRMED' or not of_paid and (o[1] == 'REFUND_DUE' or o[1] == 'WATCHED')
if o[2] ~= receipt or not open or o[4] then return { 'NOT_OPEN' } end
if transaction == '' then transaction = o[3] or '' end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'payment_ended', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'receipt', receipt, 'outcome', outcome,
  'transaction', transaction)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', order, 'gateway', outcome, 'transaction', transaction)
redis.call('ZREM', gateway, order_id)
return { 'FINISHED', epoch, seq }
