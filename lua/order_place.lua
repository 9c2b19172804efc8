#!lua
-- Places orders: prices each one and holds its stock and its coupon, all or nothing. Decides a batch of requests in their order.
--
-- KEYS 1 meta     hash    partition state
--      2 outbox   stream
--      3 expiry   zset    order id by the end of its hold (ms)
--      4 price    hash    product id -> won
--      5 stock    hash    product id -> units on sale
--      6 held     hash    product id -> units held
--      then of each request
--        record   list    idempotency record
--        user     hash    name balance entries tail open, and by coupon id the user's coupons
--        order    hash    the new order
-- ARGV 1 now (ms) in tests, else ''  2 life of a record (ms)  3 maximum of open orders of a user
--      4 '1' where the balance must cover the order, '0' where a gateway may settle it  5 how long an order holds (ms)
--      then of each request: fingerprint or '', request id, order id, user id, coupon id or '', PERCENTAGE | FIXED,
--        percent or won, when the coupon expires (ms),
--        n, then n pairs: product id, quantity: distinct products, of which this partition sells its own units, or those that
--        their owner partitions gave it
-- Returns of each request, packed, {'PLACED', epoch, seq, order id, final price, now}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or USER_NOT_FOUND | TOO_MANY_OPEN | {PRODUCT_NOT_FOUND, id} | {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id}
--      or INVALID_COUPON | OVERFLOW | INSUFFICIENT_BALANCE | ALREADY_EXISTS (the order)
--      of the whole batch PARTITION_CLOSED
-- Emits order_placed for each
--@include lists
--@include partition
--@include idempotency
--@include batch
--@include holds
local meta, outbox, expiry = KEYS[1], KEYS[2], KEYS[3]
local prices, stock, held = new_counters(KEYS[4]), new_counters(KEYS[5]), new_counters(KEYS[6])
local now, ttl, max_open, must_afford = current_time(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local now_ms = tonumber(now)
local expires_at = whole(now_ms + tonumber(ARGV[5]))
local n = (#KEYS - 6) / 3
local MAX_SAFE_INTEGER = 9007199254740991

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end

-- The requests, and the products and orders that are read for all of them at once.
local requests, products, orders = {}, {}, {}
local at = 6
for i = 1, n do
  local fingerprint, request_id, order_id, user_id, coupon_id, discount_type, discount, coupon_ends, lines =
    unpack(ARGV, at, at + 8)
  local ids, units, order = {}, {}, KEYS[3 * i + 6]
  for line = 1, tonumber(lines) do
    local id = ARGV[at + 7 + 2 * line]
    ids[line], units[line] = id, tonumber(ARGV[at + 8 + 2 * line])
    products[#products + 1] = id
  end
  at = at + 9 + 2 * #ids
  requests[i] = { record = KEYS[3 * i + 4], user = KEYS[3 * i + 5], order = order, fingerprint = fingerprint,
    request_id = request_id, order_id = order_id, user_id = user_id, coupon_id = coupon_id,
    discount_type = discount_type, discount = tonumber(discount), coupon_ends = tonumber(coupon_ends), ids = ids,
    units = units }
  orders[i] = order
end
prices.load(products)
stock.load(products)
held.load(products)
local none_exist = count_existing(orders) == 0

local records, users, replies, events = new_records(), {}, {}, {}
-- The pending writes: orders with their fields, the ends of their holds, keys of users.
local placed, placed_keys, ends, touched = {}, {}, {}, {}

-- The fields of a user that orders need, with the changes of this batch.
local function user_of(key)
  local user = users[key]
  if not user then
    local u = redis.call('HMGET', key, 'name', 'balance', 'open')
    user = { name = u[1], balance = tonumber(u[2]), open = tonumber(u[3]), coupons = {}, touched = false }
    users[key] = user
  end
  return user
end

-- The total price of an order, and its lines, packed; nothing if the total is too large to be exact.
local function priced(request)
  -- Doubles are exact up to 2^53 and round monotonically above it, so a sum above the bound stays above it.
  local total, lines = 0, {}
  for line, id in ipairs(request.ids) do
    total = total + prices.get(id) * request.units[line]
    if total > MAX_SAFE_INTEGER then return end
    lines[line] = id .. ':' .. whole(request.units[line]) .. ':' .. whole(prices.get(id))
  end
  return total, table.concat(lines, ',')
end

local function discounted(request, total)
  if request.coupon_id == '' then return 0 end
  if request.discount_type ~= 'PERCENTAGE' then return math.min(request.discount, total) end
  -- floor(total * percent / 100) without leaving the exact integers
  local rest = total % 100
  return (total - rest) / 100 * request.discount + math.floor(rest * request.discount / 100)
end

-- The reply to a request. Adds an order that is placed to the pending writes.
local function decide(request)
  if not none_exist and redis.call('EXISTS', request.order) == 1 then
    -- After a loss, an id that was used before.
    return 'ALREADY_EXISTS'
  end
  local user = user_of(request.user)
  if not user.name then return 'USER_NOT_FOUND' end
  if user.open >= max_open then return 'TOO_MANY_OPEN' end
  local short = shortage(request.ids, request.units, prices.get, stock.get)
  if short then return table.concat(short, SEPARATOR) end
  local coupon
  if request.coupon_id ~= '' then
    coupon = user.coupons[request.coupon_id] or redis.call('HGET', request.user, request.coupon_id)
    if not coupon or not request.coupon_ends or string.match(coupon, '^%d+|%d+|(%a)') ~= 'A'
      or now_ms >= request.coupon_ends then
      return 'INVALID_COUPON'
    end
  end
  local total, lines = priced(request)
  if not total then return 'OVERFLOW' end
  local discount = discounted(request, total)
  local final = total - discount
  if must_afford and user.balance < final then return 'INSUFFICIENT_BALANCE' end

  local number, order_id, user_id, coupon_id = whole(seq), request.order_id, request.user_id, request.coupon_id
  total, discount, final = whole(total), whole(discount), whole(final)
  local reply = 'PLACED' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. order_id .. SEPARATOR .. final
    .. SEPARATOR .. now
  records.file(request.record, request.fingerprint, reply)
  user.open = user.open + 1
  if not user.touched then
    user.touched = true
    touched[#touched + 1] = request.user
  end
  if coupon then user.coupons[coupon_id] = coupon_in_state(coupon, 'H', order_id, '') end
  for line, id in ipairs(request.ids) do
    stock.add(id, -request.units[line])
    held.add(id, request.units[line])
  end
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
---- checks above, writes below -------------------------------------------------------------------------------------
emit(outbox, epoch, events)
redis.call('HSET', meta, 'seq', whole(seq - 1))
for i = 1, #placed do write_in_chunks('HSET', placed_keys[i], placed[i]) end
write_in_chunks('ZADD', expiry, ends)
for i = 1, #touched do
  -- Once per user, however many orders it has placed.
  local user = users[touched[i]]
  local fields = { 'open', whole(user.open) }
  for coupon_id, coupon in pairs(user.coupons) do
    fields[#fields + 1], fields[#fields + 2] = coupon_id, coupon
  end
  write_in_chunks('HSET', touched[i], fields)
end
stock.write()
held.write()
records.write(ttl)
return replies
