#!lua
-- Settles a PENDING order: from the user's balance, or because a gateway took the money. A balance that does not
-- suffice is a declined payment: the order FAILED and its holds are given back, in this same step.
--
-- KEYS 1 meta        hash    the partition's books
--      2 outbox      stream
--      3 record      list    the idempotency record
--      4 user        hash    name balance entries tail open
--      5 coupons     hash    the user's coupons
--      6 order       hash
--      7 expiry      zset    order id by the end of its hold (ms)
--      8 stock       hash    product id -> units on sale
--      9 held        hash    product id -> units held
--     10 sold        hash    product id -> units sold
--     11 rank_units  zset    today's units by product
--     12 rank_won    zset    today's won by product
--     13 gateway     zset    order id by when its gateway payment is looked at next (ms)
--     14 withheld    hash    product id -> units kept off sale after a loss
-- ARGV 1 now (ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 order id  6 user id  7 amount (won)
--      8 payment type  9 payment id  10 receipt  11 BALANCE | GATEWAY  12 the gateway's transaction id or ''
--     13 today, YYYYMMDD  14 the life of today's rankings from now (s)
-- Returns {'PAID', epoch, seq, payment id, receipt, paid at} | {'DECLINED', epoch, seq}
--      or {'PAID_BEFORE', payment id, receipt, paid at} (a gateway's verdict, told again)
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or ORDER_NOT_FOUND | ALREADY_PAID | CLOSED | WRONG_AMOUNT
-- Emits order_paid, or order_closed (FAILED, PAYMENT_DECLINED)
--@include books
--@include holds
local meta, outbox, record, user, coupons, order, expiry, stock, held, sold, rank_units, rank_won, gateway, withheld =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13],
  KEYS[14]
local now, fingerprint, ttl, request_id, order_id, user_id, amount =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local payment_type, payment_id, receipt, by_gateway, transaction, day, rank_life =
  ARGV[8], ARGV[9], ARGV[10], ARGV[11] == 'GATEWAY', ARGV[12], ARGV[13], ARGV[14]

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
-- A gateway's verdict is told apart by its receipt instead: its request is the one that is RUNNING.
local prior = not by_gateway and replay(record, fingerprint)
if prior then return prior end
local o = redis.call('HMGET', order, 'user', 'status', 'final', 'lines', 'far', 'coupon', 'receipt', 'gateway',
  'payment', 'paid_at', 'doubt')
if not o[1] or o[1] ~= user_id then return { 'ORDER_NOT_FOUND' } end
local status, final, lines, far, coupon_id, gateway_state = o[2], tonumber(o[3]), o[4], o[5], o[6], o[8]
if by_gateway then
  if o[7] ~= receipt then return { 'CLOSED' } end
  if status == 'PAID' then return { 'PAID_BEFORE', o[9], receipt, o[10] } end
  if status ~= 'PENDING' or gateway_state ~= 'STARTED' then return { 'CLOSED' } end
else
  if status == 'PAID' then return { 'ALREADY_PAID' } end
  if status ~= 'PENDING' then return { 'CLOSED' } end
  if gateway_state == 'STARTED' then return { 'IN_PROGRESS' } end
  if amount ~= final then return { 'WRONG_AMOUNT' } end
end
local u = redis.call('HMGET', user, 'balance', 'entries', 'tail')
local before, entry_no = tonumber(u[1]), tonumber(u[2])
local ids, units, prices = unpack_lines(lines)
-- In doubt: decisions that were lost may have paid it, and its user was told so.
local doubtful = o[11] == '1'
---- checks above, writes below -------------------------------------------------------------------------------------
if not by_gateway and before < final then
  local reply = { 'DECLINED', epoch, seq }
  redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'order_closed', 'epoch', epoch, 'seq', seq, 'at', now,
    'rid', request_id, 'order', order_id, 'user', user_id, 'from', 'PENDING', 'status', 'FAILED',
    'reason', 'PAYMENT_DECLINED', 'lines', lines, 'far', far, 'coupon', coupon_id, 'receipt', '', 'method', '',
    'day', '', 'watch', '0', 'withheld', doubtful and '1' or '0', 'credit', 0, 'before', before, 'after', before, 'entry_no', entry_no, 'prev', u[3],
    record_of(record, fingerprint, reply))
  redis.call('HSET', meta, 'seq', seq)
  redis.call('HSET', order, 'status', 'FAILED', 'reason', 'PAYMENT_DECLINED', 'closed_at', now)
  redis.call('ZREM', expiry, order_id)
  redis.call('HINCRBY', user, 'open', -1)
  move_units(ids, units, held, doubtful and withheld or stock)
  mark_coupon(coupons, coupon_id, 'A', '', '')
  return remember(record, fingerprint, ttl, reply)
end
-- What leaves the balance: nothing if a gateway took the money, or if there was nothing to pay.
local debit = by_gateway and 0 or final
local after, method = before - debit, by_gateway and 'GATEWAY' or 'BALANCE'
if debit > 0 then entry_no = entry_no + 1 end
local reply = { 'PAID', epoch, seq, payment_id, receipt, now }
local id = redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'order_paid', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'amount', final, 'type', payment_type, 'method', method,
  'payment', payment_id, 'receipt', receipt, 'transaction', transaction, 'lines', lines, 'far', far,
  'coupon', coupon_id, 'day', day, 'debit', debit, 'before', before, 'after', after, 'entry_no', entry_no, 'prev', u[3],
  record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', order, 'status', 'PAID', 'payment', payment_id, 'type', payment_type, 'method', method,
  'receipt', receipt, 'paid_at', now, 'day', day)
if by_gateway then
  redis.call('HSET', order, 'gateway', 'SETTLED', 'transaction', transaction)
  redis.call('ZREM', gateway, order_id)
end
redis.call('ZREM', expiry, order_id)
redis.call('HINCRBY', user, 'open', -1)
if debit > 0 then redis.call('HSET', user, 'balance', after, 'entries', entry_no, 'tail', id) end
move_units(ids, units, held, sold)
mark_coupon(coupons, coupon_id, 'U', order_id, now)
rank(ids, units, prices, rank_units, rank_won, rank_life)
return remember(record, fingerprint, ttl, reply)
