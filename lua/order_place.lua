#!lua
-- Places orders: prices each one and holds its stock and its coupon, all or nothing. Decides a batch of requests in their order.
--
-- KEYS 1 meta     hash    partition state
--      2 outbox   stream
--      3 expiry   zset    order id by the end of its hold (ms)
--      4 price    hash    product id -> won, or won with the terms of sale
--      5 stock    hash    product id -> units on sale
--      6 held     hash    product id -> units held
--      then of each request
--        record   list    idempotency record
--        user     hash    name balance entries tail open, by coupon id the user's coupons, and what the user has of limits
--        order    hash    the new order
-- ARGV 1 now (ms) in tests, else ''  2 life of a record (ms)  3 maximum of open orders of a user
--      4 '1' where the balance must cover the order, '0' where a gateway may settle it  5 how long an order holds (ms)
--      then of each request: fingerprint or '', request id, order id, user id, coupon id or '', PERCENTAGE | FIXED,
--        percent or won, when the coupon expires (ms),
--        the coupon's conditions or '': least total and most discount (won), and '1' or '0' of each line, which says whether the
--        discount is of it, separated by '|'; an empty part is no condition,
--        n, then n pairs: product id, quantity: distinct products, of which this partition sells its own units, or those that
--        their owner partitions gave it
-- Returns of each request, packed, {'PLACED', epoch, seq, order id, final price, now}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or USER_NOT_FOUND | TOO_MANY_OPEN | {PRODUCT_NOT_FOUND, id} | NOT_ON_SALE | PURCHASE_LIMIT_EXCEEDED
--      or {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id}
--      or INVALID_COUPON | OVERFLOW | INSUFFICIENT_BALANCE | ALREADY_EXISTS (the order)
--      of the whole batch PARTITION_CLOSED
-- Emits order_placed for each
--@include lists
--@include partition
--@include idempotency
--@include batch
--@include holds
--@include placing
local meta, outbox, expiry = KEYS[1], KEYS[2], KEYS[3]
local stock, held = new_counters(KEYS[5]), new_counters(KEYS[6])
local now, ttl, max_open, must_afford = current_time(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local now_ms = tonumber(now)
local expires_at = whole(now_ms + tonumber(ARGV[5]))
local n = (#KEYS - 6) / 3

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end

local requests, at = {}, 6
for i = 1, n do
  requests[i] = read_request(at, 3 * i + 4)
  at = requests[i].rest
end
load_prices(KEYS[4], now_ms)
stock.load(products)
held.load(products)

local records, replies, events = new_records(), {}, {}
-- The pending writes: orders with their fields, the ends of their holds, keys of users.
local placed, placed_keys, ends, touched = {}, {}, {}, {}

-- The reply to a request. Adds an order that is placed to the pending writes.
local function decide(request)
  local refusal, user, coupon, lines, total, discount = judge(request, max_open, must_afford, stock.get, now_ms)
  if refusal then return refusal end

  local number, order_id, user_id, coupon_id = whole(seq), request.order_id, request.user_id, request.coupon_id
  local final
  total, discount, final = sums_of(total, discount)
  local reply = 'PLACED' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. order_id .. SEPARATOR .. final
    .. SEPARATOR .. now
  records.file(request.record, request.fingerprint, reply)
  user.open = user.open + 1
  if not user.touched then
    user.touched = true
    touched[#touched + 1] = request.user
  end
  if coupon then user.known[coupon_id] = coupon_in_state(coupon, 'H', order_id, '') end
  local ids, units = request.ids, request.units
  for line = 1, #ids do stock.add(ids[line], -units[line]) end
  placed[#placed + 1] = { 'user', user_id, 'status', 'PENDING', 'lines', lines, 'total', total,
    'discount', discount, 'final', final, 'coupon', coupon_id, 'placed_at', now, 'expires_at', expires_at }
  placed_keys[#placed] = request.order
  ends[#ends + 1], ends[#ends + 2] = expires_at, order_id
  events[#events + 1] = with_record(
    'order_placed' .. SEPARATOR .. number .. SEPARATOR .. now .. SEPARATOR .. request.request_id .. SEPARATOR .. order_id
      .. SEPARATOR .. user_id .. SEPARATOR .. lines .. SEPARATOR .. total .. SEPARATOR .. discount
      .. SEPARATOR .. final .. SEPARATOR .. coupon_id .. SEPARATOR .. expires_at,
    request.record, request.fingerprint, reply)
  seq = seq + 1
  return reply
end

for i = 1, n do
  local request = requests[i]
  replies[i] = records.replay(request.record, request.fingerprint) or decide(request)
end
if #events == 0 then return replies end
move_taken(stock, held)
---- checks above, writes below -------------------------------------------------------------------------------------
emit(outbox, epoch, events)
redis.call('HSET', meta, 'seq', whole(seq - 1))
for i = 1, #placed do write_in_chunks('HSET', placed_keys[i], placed[i]) end
write_in_chunks('ZADD', expiry, ends)
for i = 1, #touched do
  -- Once per user, however many orders it has placed.
  local user = users[touched[i]]
  -- With room for a limit.
  local fields = { 'open', whole_again(user.open), nil, nil }
  append_known(user, fields)
  write_in_chunks('HSET', touched[i], fields)
end
stock.write()
held.write()
records.write(ttl)
return replies
