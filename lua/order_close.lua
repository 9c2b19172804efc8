#!lua
-- Closes an order and releases what it holds: a PENDING order on its user's request, at expiry, or because a gateway declined;
-- a PAID order on its user's or an operator's request, where what is left of it is refunded by the method it was paid with.
--
-- KEYS 1 meta        hash    partition state
--      2 outbox      stream
--      3 record      list    idempotency record
--      4 user        hash    name balance entries tail open, by coupon id the user's coupons, and what the user has of limits
--      5 order       hash
--      6 expiry      zset    order id by the end of its hold (ms)
--      7 stock       hash    product id -> units on sale
--      8 held        hash    product id -> units held
--      9 sold        hash    product id -> units sold
--     10 rank_units  zset    units by product on the day of the sale
--     11 rank_won    zset    won by product on that day
--     12 gateway     zset    order id by the next check of its gateway payment (ms)
--     13 withheld    hash    product id -> units withheld after a loss
--     14 freed       hash    product id -> units that ever came back on sale
--     15 quarantined hash    product id -> refunded units that stay off sale
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 order id  6 user id
--      7 CANCEL | REFUND (a PAID order only) | EXPIRE | DECLINE  8 the day of the sale, of KEYS 10 and 11, YYYYMMDD, or ''
--      9 when the rankings of that day expire (ms), or '0'
--     10 the receipt that was declined, or ''  11 delay of the next question to the gateway (ms), '' to ask no more
--     12 how long after its payment the order may be refunded (ms), '' for any time  13 the lines to refund, '' for all left
--     14 '1' if refunded units come back on sale, '0' if they stay off sale  15 operator or ''  16 reason or ''
-- Returns {'CLOSED', epoch, seq, status, reason, closed at}, after DECLINE {'DECLINED', epoch, seq}
--      or {'REPLAYED', ...that, or the reply of order_refund} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or ORDER_NOT_FOUND | ALREADY_CLOSED | ALREADY_PAID (EXPIRE and DECLINE only) | NOT_PAID | WINDOW_CLOSED | NOT_DUE
--      or STALE (the day is another one, or other lines are left)
-- Emits order_closed
--@include lists
--@include partition
--@include idempotency
--@include holds
--@include payment
local meta, outbox, record, user, order, expiry, rank_units, rank_won, gateway =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[10], KEYS[11], KEYS[12]
local stock, held, sold, withheld =
  new_counters(KEYS[7]), new_counters(KEYS[8]), new_counters(KEYS[9]), new_counters(KEYS[13])
local freed, quarantined = new_counters(KEYS[14]), new_counters(KEYS[15])
local now, fingerprint, ttl, request_id, order_id, user_id, why, day, day_until, declined, ask_again =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local window, only_lines, restock, operator, refund_reason = ARGV[12], ARGV[13], ARGV[14], ARGV[15], ARGV[16]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
-- DECLINE answers the request that is RUNNING under this record.
local prior = why ~= 'DECLINE' and replay(record, fingerprint)
if prior then return prior end
local o = redis.call('HMGET', order, 'user', 'status', 'final', 'lines', 'coupon', 'expires_at', 'gateway', 'receipt',
  'payment', 'doubt')
if not o[1] or o[1] ~= user_id then return { 'ORDER_NOT_FOUND' } end
local from, final, lines, coupon_id, gateway_state, receipt = o[2], tonumber(o[3]), o[4], o[5], o[7], o[8] or ''
local _, _, method, paid_at, sold_on = payment_of(o[9])
if from ~= 'PENDING' and from ~= 'PAID' then return { 'ALREADY_CLOSED' } end
local status, reason = 'CANCELLED', 'CANCELLED_BY_USER'
if why == 'CANCEL' or why == 'REFUND' then
  if from == 'PAID' then
    reason = 'REFUNDED'
    if window ~= '' and tonumber(now) - tonumber(paid_at) >= tonumber(window) then return { 'WINDOW_CLOSED' } end
    if sold_on ~= day or (only_lines ~= '' and only_lines ~= lines) then return { 'STALE' } end
  elseif why == 'REFUND' then
    return { 'NOT_PAID' }
  elseif gateway_state == 'STARTED' then
    return { 'IN_PROGRESS' }
  end
else
  if from == 'PAID' then return { 'ALREADY_PAID' } end
  if why == 'EXPIRE' then
    reason = 'EXPIRED'
    if gateway_state == 'STARTED' or tonumber(o[6]) > tonumber(now) then return { 'NOT_DUE' } end
  else
    status, reason = 'FAILED', 'PAYMENT_DECLINED'
    if gateway_state ~= 'STARTED' or receipt ~= declined then return { 'NOT_DUE' } end
  end
end
local u = redis.call('HMGET', user, 'balance', 'entries', 'tail', 'open', 'name')
-- A user that was forgotten asks for nothing more.
if why == 'CANCEL' and not u[5] then return { 'ORDER_NOT_FOUND' } end
local before, entry_no, open = tonumber(u[1]), tonumber(u[2]), tonumber(u[4])
local ids, units, prices = unpack_lines(lines)
-- A lost decision may have paid the order, and its user has seen that reply.
local suspect = o[10] == '1' and why == 'EXPIRE'
local by_gateway = method == 'GATEWAY'
-- From which counter to which one its units move.
local from_units, to_units = sold, restock == '0' and quarantined or stock
if from == 'PENDING' then from_units, to_units = held, suspect and withheld or stock end
from_units.load(ids)
to_units.load(ids)
move_units(ids, units, from_units, to_units)
if to_units == stock then count_freed(freed, ids, units) end
local counts = {}
give_back(counts, user, lines)
-- The refund to the balance, of a payment from it.
local credit = (from == 'PAID' and not by_gateway) and final or 0
local after = before + credit
if credit > 0 then entry_no = entry_no + 1 end
local day_counts = tonumber(day_until) > tonumber(now)
-- New fields of the user, the gateway payment's new state, and the time of its next check.
local fields, gateway_next, ask_at = {}, nil, nil
local coupon = coupon_id ~= '' and redis.call('HGET', user, coupon_id)
if coupon then fields = { coupon_id, coupon_in_state(coupon, 'A', '', '') } end
if from == 'PENDING' then
  fields[#fields + 1], fields[#fields + 2] = 'open', whole(open - 1)
  if why == 'DECLINE' and ask_again == '' then
    gateway_next = 'DECLINED'
  elseif why == 'DECLINE' then
    -- The outcome is not certain: the gateway is asked for some time yet, so that late money goes back.
    gateway_next, ask_at = 'WATCHED', whole(tonumber(now) + tonumber(ask_again))
  end
elseif by_gateway then
  gateway_next, ask_at = 'REFUND_DUE', now
end
local is_quarantined = to_units == quarantined
-- A version that does not know these units must not project the event.
local version = is_quarantined and 4 or 1
local reply = why == 'DECLINE' and { 'DECLINED', epoch, seq } or { 'CLOSED', epoch, seq, status, reason, now }
---- checks above, writes below -------------------------------------------------------------------------------------
local id = redis.call('XADD', outbox, '*', 'v', version, 'kind', 'order_closed', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'from', from, 'status', status, 'reason', reason,
  'lines', lines, 'coupon', coupon_id, 'receipt', receipt, 'method', method or '',
  'day', day, 'watch', ask_again ~= '' and '1' or '0', 'withheld', suspect and '1' or '0',
  'quarantined', is_quarantined and '1' or '0', 'operator', operator, 'why', refund_reason, 'credit', credit,
  'before', before, 'after', after,
  'entry_no', entry_no, 'prev', u[3], record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', order, 'status', status, 'reason', reason, 'closed_at', now)
if from == 'PENDING' then
  redis.call('ZREM', expiry, order_id)
else
  -- It may be set to expire; it stays until Postgres has this decision, too.
  redis.call('PERSIST', order)
  if credit > 0 then redis.call('HSET', user, 'balance', after, 'entries', entry_no, 'tail', id) end
  if day_counts then unrank(ids, units, prices, rank_units, rank_won) end
end
from_units.write()
to_units.write()
freed.write()
if gateway_next then redis.call('HSET', order, 'gateway', gateway_next) end
if ask_at then
  redis.call('ZADD', gateway, ask_at, order_id)
elseif gateway_next then
  redis.call('ZREM', gateway, order_id)
end
write_in_chunks('HSET', user, fields)
write_counts(user, counts)
return remember(record, fingerprint, ttl, reply)
