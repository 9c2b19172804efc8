#!lua
-- Places orders and pays each from its user's balance, all or nothing. Decides a batch of requests of one day in their order.
--
-- KEYS 1 meta        hash    partition state
--      2 outbox      stream
--      3 price       hash    product id -> won, or won with the terms of sale
--      4 stock       hash    product id -> units on sale
--      5 sold        hash    product id -> units sold
--      6 rank_units  zset    the day's units by product
--      7 rank_won    zset    the day's won by product
--      then of each request
--        record      list    idempotency record
--        user        hash    name balance entries tail open, by coupon id the user's coupons, and what the user has of limits
--        order       hash    the new order
-- ARGV 1 now (ms) in tests, else ''  2 life of a record (ms)  3 maximum of open orders of a user
--      4 how long an order would hold (ms)  5 the day, YYYYMMDD  6 its first instant (ms)  7 first instant after it (ms)
--      8 when its rankings expire (ms)
--      then of each request those of order_place, and then payment type, payment id, receipt
-- Returns of each request, packed, {'CHECKED_OUT', epoch, seq, order id, final price, now, payment id, receipt}, where seq is of the
--         first of two decisions
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or USER_NOT_FOUND | TOO_MANY_OPEN | {PRODUCT_NOT_FOUND, id} | NOT_ON_SALE | PURCHASE_LIMIT_EXCEEDED
--      or {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id}
--      or INVALID_COUPON | OVERFLOW | INSUFFICIENT_BALANCE | ALREADY_EXISTS (the order)
--      or {'OTHER_DAY', now (ms)} (the day is over, or has not begun)
--      of the whole batch PARTITION_CLOSED
-- Emits order_checked_out for each: order_placed and order_paid as one text
--@include lists
--@include partition
--@include idempotency
--@include batch
--@include holds
--@include payment
--@include placing
local meta, outbox, rank_units, rank_won = KEYS[1], KEYS[2], KEYS[6], KEYS[7]
local stock, sold = new_counters(KEYS[4]), new_counters(KEYS[5])
local now, ttl, max_open, day, rank_until = current_time(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[5], ARGV[8]
local now_ms = tonumber(now)
local expires_at = whole(now_ms + tonumber(ARGV[4]))
local n = (#KEYS - 7) / 3

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local replies = {}
if now_ms < tonumber(ARGV[6]) or now_ms >= tonumber(ARGV[7]) then
  for i = 1, n do replies[i] = 'OTHER_DAY' .. SEPARATOR .. now end
  return replies
end

local requests, at = {}, 9
for i = 1, n do
  requests[i] = read_request(at, 3 * i + 5)
  at = requests[i].rest + 3
end
load_prices(KEYS[3], now_ms)
stock.load(products)
sold.load(products)

local records, events = new_records(), {}
-- The pending writes: orders with their fields, keys of users.
local placed, placed_keys, touched = {}, {}, {}

-- The reply to a request. Adds an order that is paid to the pending writes.
local function decide(request)
  local refusal, user, coupon, lines, total, discount, won = judge(request, max_open, true, stock.get, now_ms)
  if refusal then return refusal end

  local number, order_id, user_id, coupon_id = whole(seq), request.order_id, request.user_id, request.coupon_id
  local payment_type, payment_id, receipt = unpack(ARGV, request.rest, request.rest + 2)
  local debit, before, prev, final = total - discount, user.won, user.tail, nil
  total, discount, final = sums_of(total, discount)
  local reply = 'CHECKED_OUT' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. order_id .. SEPARATOR .. final
    .. SEPARATOR .. now .. SEPARATOR .. payment_id .. SEPARATOR .. receipt
  records.file(request.record, request.fingerprint, reply)
  if debit > 0 then
    user.won, user.entries, user.tail = whole(won - debit), whole_again(user.entries + 1), SAME_ENTRY
  end
  if not user.touched then
    user.touched = true
    touched[#touched + 1] = request.user
  end
  if coupon then user.known[coupon_id] = coupon_in_state(coupon, 'U', order_id, now) end
  local ids, units = request.ids, request.units
  for line = 1, #ids do stock.add(ids[line], -units[line]) end
  placed[#placed + 1] = { 'user', user_id, 'status', 'PAID', 'lines', lines, 'total', total, 'discount', discount,
    'final', final, 'coupon', coupon_id, 'placed_at', now, 'expires_at', expires_at,
    'receipt', receipt, 'payment', pack_payment(payment_id, payment_type, 'BALANCE', now, day) }
  placed_keys[#placed] = request.order
  -- Both decisions as one event.
  events[#events + 1] = with_record(
    'order_checked_out' .. SEPARATOR .. number .. SEPARATOR .. now .. SEPARATOR .. request.request_id .. SEPARATOR .. order_id
      .. SEPARATOR .. user_id .. SEPARATOR .. lines .. SEPARATOR .. total .. SEPARATOR .. discount .. SEPARATOR .. final
      .. SEPARATOR .. coupon_id .. SEPARATOR .. expires_at .. SEPARATOR .. payment_id .. SEPARATOR .. payment_type
      .. SEPARATOR .. receipt .. SEPARATOR .. day .. SEPARATOR .. before .. SEPARATOR .. user.won .. SEPARATOR
      .. user.entries .. SEPARATOR .. prev,
    request.record, request.fingerprint, reply)
  seq = seq + 2
  return reply
end

for i = 1, n do
  local request = requests[i]
  replies[i] = records.replay(request.record, request.fingerprint) or decide(request)
end
if #events == 0 then return replies end
local units, won = move_taken(stock, sold), {}
for id, n in pairs(units) do won[id] = n * prices[id] end
---- checks above, writes below -------------------------------------------------------------------------------------
-- A version that does not know the event must not project it.
local id = emit(outbox, epoch, events, 6)
redis.call('HSET', meta, 'seq', whole(seq - 1))
for i = 1, #placed do write_in_chunks('HSET', placed_keys[i], placed[i]) end
for i = 1, #touched do
  -- Once per user, however many orders it has paid.
  local user, fields = users[touched[i]], nil
  if user.tail == SAME_ENTRY then
    -- With room for a limit.
    fields = { 'balance', user.won, 'entries', user.entries, 'tail', id, nil, nil }
  else
    fields = {}
  end
  append_known(user, fields)
  write_in_chunks('HSET', touched[i], fields)
end
stock.write()
sold.write()
rank(units, won, rank_units, rank_won, seconds_until(rank_until, now))
records.write(ttl)
return replies
