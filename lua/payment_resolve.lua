#!lua
-- Decides a payment whose gateway does not know its outcome, as an operator says: the order becomes PAID, or FAILED with its
-- stock and coupon released. The gateway is asked on, so that a later answer is reconciled.
--
-- KEYS 1 meta        hash    partition state
--      2 outbox      stream
--      3 record      list    idempotency record of the operator's request
--      4 waiting     list    idempotency record of the payment's request, which is RUNNING
--      5 user        hash    name balance entries tail open, by coupon id the user's coupons, and what the user has of limits
--      6 order       hash
--      7 gateway     zset    order id by the next check of its gateway payment (ms)
--      8 stock       hash    product id -> units on sale
--      9 held        hash    product id -> units held
--     10 sold        hash    product id -> units sold
--     11 rank_units  zset    the day's units by product
--     12 rank_won    zset    the day's won by product
--     13 freed       hash    product id -> units that ever came back on sale
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 order id
--      6 the payment's receipt  7 the digest of the payment's key or ''  8 APPROVED | DECLINED
--      9 the gateway's transaction id or ''  10 operator  11 reason  12 the day, YYYYMMDD  13 its first instant (ms)
--     14 first instant after it (ms)  15 when the day's rankings expire (ms)  16 delay of the next question to the gateway (ms)
-- Returns {'RESOLVED', epoch, seq, status, at}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or ORDER_NOT_FOUND | NOT_OPEN (no payment is under way) | STALE (it is another one)
--      or {'OTHER_DAY', now (ms)} (the day is over, or has not begun)
-- Emits order_paid or order_closed (FAILED, PAYMENT_DECLINED), and then payment_resolved
--@include lists
--@include partition
--@include idempotency
--@include holds
--@include payment
local meta, outbox, record, waiting, user, order, gateway, rank_units, rank_won =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[11], KEYS[12]
local stock, held, sold = new_counters(KEYS[8]), new_counters(KEYS[9]), new_counters(KEYS[10])
local freed = new_counters(KEYS[13])
local now, fingerprint, ttl, request_id, order_id, receipt, waiting_key, outcome, transaction, operator, reason, day =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11],
  ARGV[12]
local now_ms, rank_until = tonumber(now), ARGV[15]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local o = redis.call('HMGET', order, 'user', 'final', 'lines', 'coupon', 'gateway', 'receipt', 'payment', 'key',
  'fingerprint', 'transaction')
if not o[1] then return { 'ORDER_NOT_FOUND' } end
if o[5] ~= 'STARTED' then return { 'NOT_OPEN' } end
if o[6] ~= receipt or (o[8] or '') ~= waiting_key then return { 'STALE' } end
if now_ms < tonumber(ARGV[13]) or now_ms >= tonumber(ARGV[14]) then return { 'OTHER_DAY', now } end
local user_id, final, lines, coupon_id, waiting_print = o[1], o[2], o[3], o[4], o[9] or ''
local payment_id, payment_type = payment_of(o[7])
-- The provider's own id, by which the payment is asked about, is kept.
if o[10] and o[10] ~= '' then transaction = o[10] end
local u = redis.call('HMGET', user, 'balance', 'entries', 'tail', 'open')
local ids, units, prices = unpack_lines(lines)
local approved = outcome == 'APPROVED'
local ranked_units, ranked_won = {}, {}
for line, id in ipairs(ids) do
  ranked_units[id] = (ranked_units[id] or 0) + units[line]
  ranked_won[id] = (ranked_won[id] or 0) + units[line] * prices[line]
end
local to_units = approved and sold or stock
held.load(ids)
to_units.load(ids)
move_units(ids, units, held, to_units)
if to_units == stock then count_freed(freed, ids, units) end
local counts = {}
if not approved then give_back(counts, user, lines) end
local user_fields = { 'open', whole(tonumber(u[4]) - 1) }
local coupon = coupon_id ~= '' and redis.call('HGET', user, coupon_id)
if coupon then
  user_fields[3], user_fields[4] = coupon_id,
    approved and coupon_in_state(coupon, 'U', order_id, now) or coupon_in_state(coupon, 'A', '', '')
end
local ask_at, rank_life = whole(now_ms + tonumber(ARGV[16])), seconds_until(rank_until, now)
local status = approved and 'PAID' or 'FAILED'
-- The reply to the payment's own request, and the reply to the operator.
local settled = approved and { 'PAID', epoch, seq, payment_id, receipt, now } or { 'DECLINED', epoch, seq }
local reply = { 'RESOLVED', epoch, seq + 1, status, now }
---- checks above, writes below -------------------------------------------------------------------------------------
if approved then
  redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'order_paid', 'epoch', epoch, 'seq', seq, 'at', now,
    'rid', request_id, 'order', order_id, 'user', user_id, 'payment', payment_id, 'type', payment_type, 'amount', final,
    'receipt', receipt, 'method', 'GATEWAY', 'transaction', transaction, 'lines', lines,
    'coupon', coupon_id, 'day', day, 'debit', 0, 'before', u[1], 'after', u[1], 'entry_no', u[2], 'prev', u[3],
    record_of(waiting, waiting_print, settled))
  redis.call('HSET', meta, 'seq', seq)
else
  redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'order_closed', 'epoch', epoch, 'seq', seq, 'at', now,
    'rid', request_id, 'order', order_id, 'user', user_id, 'from', 'PENDING', 'status', 'FAILED',
    'reason', 'PAYMENT_DECLINED', 'lines', lines,  'coupon', coupon_id, 'receipt', receipt, 'method', '',
    'day', '', 'watch', 1, 'withheld', 0, 'credit', 0, 'before', u[1], 'after', u[1], 'entry_no', u[2], 'prev', u[3],
    record_of(waiting, waiting_print, settled))
  redis.call('HSET', meta, 'seq', seq)
end
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'payment_resolved', 'epoch', epoch, 'seq', seq + 1, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'receipt', receipt, 'outcome', outcome,
  'operator', operator, 'why', reason, record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq + 1)
if approved then
  redis.call('HSET', order, 'status', status,
    'payment', pack_payment(payment_id, payment_type, 'GATEWAY', now, day), 'transaction', transaction,
    'gateway', 'UNCONFIRMED', 'gateway_asks', 0)
  rank(ranked_units, ranked_won, rank_units, rank_won, rank_life)
else
  redis.call('HSET', order, 'status', status, 'reason', 'PAYMENT_DECLINED', 'closed_at', now,
    'gateway', 'WATCHED', 'gateway_asks', 0)
end
held.write()
to_units.write()
freed.write()
write_in_chunks('HSET', user, user_fields)
write_counts(user, counts)
redis.call('ZADD', gateway, ask_at, order_id)
remember(waiting, waiting_print, ttl, settled)
return remember(record, fingerprint, ttl, reply)
