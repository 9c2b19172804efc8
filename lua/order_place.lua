#!lua
-- Places orders: prices each, and holds its stock and its coupon, all or nothing; any number of requests in one call, decided
-- in their order.
--
-- KEYS 1 meta     hash    the partition's books
--      2 outbox   stream
--      3 expiry   zset    order id by the end of its hold (ms)
--      4 price    hash    product id -> won
--      5 stock    hash    product id -> units on sale
--      6 held     hash    product id -> units held
--      then of each request
--        record   list    the idempotency record
--        user     hash    name balance entries tail open, and by coupon id the user's coupons
--        order    hash    the order to be
-- ARGV 1 '' (a test's clock, ms)  2 record's life (ms)  3 the most open orders of a user
--      4 '1' where the balance must suffice, '0' where a gateway may settle it  5 how long an order holds (ms)
--      then of each request: fingerprint or '', request id, order id, user id, coupon id or '', PERCENTAGE | FIXED, percent or won, the coupon's end (ms),
--        n, then n pairs: product id, quantity: distinct products of this partition,
--        then "far" lines, "product:quantity:price,...", held before in their own partitions; '' for none
--        '' to decide; to judge alone, before the far lines are held: why they could not be (SOLD_OUT ...), or NONE
-- Returns of each request, packed, {'PLACED', epoch, seq, order id, final price, now}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or USER_NOT_FOUND | TOO_MANY_OPEN | {PRODUCT_NOT_FOUND, id} | {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id}
--      or ACCEPTABLE (it was only judged)
--      or INVALID_COUPON | OVERFLOW | INSUFFICIENT_BALANCE | ABANDONED
--      of them all CLOSED_BOOKS
-- Emits order_placed for each
--@include lists
--@include partition
--@include batch
--@include holds
local meta, outbox, expiry = KEYS[1], KEYS[2], KEYS[3]
local prices, stock, held = new_counters(KEYS[4]), new_counters(KEYS[5]), new_counters(KEYS[6])
local now, ttl, max_open, must_afford = current_time(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local now_ms = tonumber(now)
local expires_at = whole(now_ms + tonumber(ARGV[5]))
local n = (#KEYS - 6) / 3
local MAX_SAFE_INTEGER = 9007199254740991

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end

-- What each asks for, and what is read for all of them at once.
local asks, products, orders = {}, {}, {}
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
  at = at + 11 + 2 * #ids
  asks[i] = { record = KEYS[3 * i + 4], user = KEYS[3 * i + 5], order = order, fingerprint = fingerprint,
    request_id = request_id, order_id = order_id, user_id = user_id, coupon_id = coupon_id,
    discount_type = discount_type, discount = tonumber(discount), coupon_ends = tonumber(coupon_ends), ids = ids,
    units = units, far = ARGV[at - 2], judges = ARGV[at - 1] }
  orders[i] = order
end
prices.load(products)
stock.load(products)
held.load(products)
local none_exist = count_existing(orders) == 0

local records, users, replies, events = new_records(), {}, {}, {}
-- What there is to write: orders with their fields, the ends of their holds, users by key.
local placed, placed_keys, ends, touched = {}, {}, {}, {}

-- A user's hash, as far as orders need it and have changed it.
local function user_of(key)
  local user = users[key]
  if not user then
    local u = redis.call('HMGET', key, 'name', 'balance', 'open')
    user = { name = u[1], balance = tonumber(u[2]), open = tonumber(u[3]), coupons = {}, touched = false }
    users[key] = user
  end
  return user
end

-- An order's lines, packed, and what they come to; nothing where that is too much to count.
local function priced(ask)
  -- Doubles are exact up to 2^53 and round monotonically above it, so a sum past the bound can't slip under it.
  local total, lines = 0, {}
  for line, id in ipairs(ask.ids) do
    total = total + prices.get(id) * ask.units[line]
    if total > MAX_SAFE_INTEGER then return end
    lines[line] = id .. ':' .. whole(ask.units[line]) .. ':' .. whole(prices.get(id))
  end
  if ask.far ~= '' then
    local _, units, far_prices = unpack_lines(ask.far)
    for line = 1, #units do
      total = total + units[line] * far_prices[line]
      if total > MAX_SAFE_INTEGER then return end
    end
  end
  return total, table.concat(lines, ',')
end

local function discounted(ask, total)
  if ask.coupon_id == '' then return 0 end
  if ask.discount_type ~= 'PERCENTAGE' then return math.min(ask.discount, total) end
  -- floor(total * percent / 100) without leaving the exact integers
  local rest = total % 100
  return (total - rest) / 100 * ask.discount + math.floor(rest * ask.discount / 100)
end

-- Why it is refused, as a reply; nothing if it is not: then it is taken down.
local function decide(ask)
  if not none_exist and redis.call('EXISTS', ask.order) == 1 then
    -- The mark of an order whose far holds were given back already; or, after a loss, an id that was given out before.
    return 'ABANDONED'
  end
  local user = user_of(ask.user)
  if not user.name then return 'USER_NOT_FOUND' end
  if user.open >= max_open then return 'TOO_MANY_OPEN' end
  if ask.judges ~= '' and ask.judges ~= 'NONE' then return ask.judges end
  local short = shortage(ask.ids, ask.units, prices.get, stock.get)
  if short then return table.concat(short, SEPARATOR) end
  local coupon
  if ask.coupon_id ~= '' then
    coupon = user.coupons[ask.coupon_id] or redis.call('HGET', ask.user, ask.coupon_id)
    if not coupon or not ask.coupon_ends or string.match(coupon, '^%d+|%d+|(%a)') ~= 'A'
      or now_ms >= ask.coupon_ends then
      return 'INVALID_COUPON'
    end
  end
  local total, lines = priced(ask)
  if not total then return 'OVERFLOW' end
  local discount = discounted(ask, total)
  local final = total - discount
  if must_afford and user.balance < final then return 'INSUFFICIENT_BALANCE' end
  if ask.judges ~= '' then return 'ACCEPTABLE' end

  local number, order_id, user_id, far, coupon_id = whole(seq), ask.order_id, ask.user_id, ask.far, ask.coupon_id
  total, discount, final = whole(total), whole(discount), whole(final)
  local reply = 'PLACED' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. order_id .. SEPARATOR .. final
    .. SEPARATOR .. now
  records.file(ask.record, ask.fingerprint, reply)
  user.open = user.open + 1
  if not user.touched then
    user.touched = true
    touched[#touched + 1] = ask.user
  end
  if coupon then user.coupons[coupon_id] = marked_coupon(coupon, 'H', order_id, '') end
  for line, id in ipairs(ask.ids) do
    stock.add(id, -ask.units[line])
    held.add(id, ask.units[line])
  end
  placed[#placed + 1] = { 'user', user_id, 'status', 'PENDING', 'lines', lines, 'far', far, 'total', total,
    'discount', discount, 'final', final, 'coupon', coupon_id, 'placed_at', now, 'expires_at', expires_at }
  placed_keys[#placed] = ask.order
  ends[#ends + 1], ends[#ends + 2] = expires_at, order_id
  events[#events + 1] = with_record(
    'order_placed' .. SEPARATOR .. number .. SEPARATOR .. now .. SEPARATOR .. ask.request_id .. SEPARATOR .. order_id
      .. SEPARATOR .. user_id .. SEPARATOR .. lines .. SEPARATOR .. far .. SEPARATOR .. total .. SEPARATOR .. discount
      .. SEPARATOR .. final .. SEPARATOR .. coupon_id .. SEPARATOR .. expires_at,
    ask.record, ask.fingerprint, reply)
  seq = seq + 1
  return reply
end

for i = 1, n do
  local ask = asks[i]
  replies[i] = records.replay(ask.record, ask.fingerprint) or decide(ask)
end
if #events == 0 then return replies end
---- checks above, writes below -------------------------------------------------------------------------------------
emit(outbox, epoch, events)
redis.call('HSET', meta, 'seq', whole(seq - 1))
for i = 1, #placed do write_in_pieces('HSET', placed_keys[i], placed[i]) end
write_in_pieces('ZADD', expiry, ends)
for i = 1, #touched do
  -- Once for each, whatever it has ordered.
  local user = users[touched[i]]
  local fields = { 'open', whole(user.open) }
  for coupon_id, coupon in pairs(user.coupons) do
    fields[#fields + 1], fields[#fields + 2] = coupon_id, coupon
  end
  write_in_pieces('HSET', touched[i], fields)
end
stock.write()
held.write()
records.write(ttl)
return replies
