#!lua
-- Places an order: prices it, and holds its stock and its coupon, all or nothing.
--
-- KEYS 1 meta     hash    the partition's books
--      2 outbox   stream
--      3 record   list    the idempotency record
--      4 user     hash    name balance entries tail open
--      5 coupons  hash    the user's coupons
--      6 order    hash    the order to be
--      7 expiry   zset    order id by the end of its hold (ms)
--      8 price    hash    product id -> won
--      9 stock    hash    product id -> units on sale
--     10 held     hash    product id -> units held
-- ARGV 1 now (ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 order id  6 user id
--      7 end of the hold (ms)  8 the most open orders of a user
--      9 '1' where the balance must suffice, '0' where a gateway may settle it
--     10 coupon id or ''  11 PERCENTAGE | FIXED  12 percent or won  13 the coupon's end (ms)
--     14 n, then n pairs: product id, quantity: distinct products of this partition
--     then "far" lines, "product:quantity:price,...", held before in their own partitions; '' for none
-- Returns {'PLACED', epoch, seq, order id, final price, now}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or USER_NOT_FOUND | TOO_MANY_OPEN | {PRODUCT_NOT_FOUND, id} | {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id}
--      or INVALID_COUPON | OVERFLOW | INSUFFICIENT_BALANCE | ABANDONED
-- Emits order_placed
--@include books
--@include holds
local meta, outbox, record, user, coupons, order, expiry, price, stock, held =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local now, fingerprint, ttl, request_id, order_id, user_id, expires_at, max_open, must_afford =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9] == '1'
local coupon_id, discount_type, discount_amount, coupon_ends = ARGV[10], ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13])
local n = tonumber(ARGV[14])
local far = ARGV[15 + 2 * n]
local MAX_SAFE_INTEGER = 9007199254740991

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
-- The mark of an order whose far holds were given back already; or, after a loss, an id that was given out before.
if redis.call('EXISTS', order) == 1 then return { 'ABANDONED' } end
local u = redis.call('HMGET', user, 'name', 'balance', 'open')
if not u[1] then return { 'USER_NOT_FOUND' } end
if tonumber(u[3]) >= max_open then return { 'TOO_MANY_OPEN' } end

local ids, units = {}, {}
for i = 1, n do ids[i], units[i] = ARGV[13 + 2 * i], tonumber(ARGV[14 + 2 * i]) end
local prices, on_sale = {}, {}
if n > 0 then
  prices, on_sale = redis.call('HMGET', price, unpack(ids)), redis.call('HMGET', stock, unpack(ids))
end
local short = shortage(ids, units, prices, on_sale)
if short then return short end

if coupon_id ~= '' then
  local coupon = redis.call('HGET', coupons, coupon_id)
  if not coupon or not coupon_ends or string.match(coupon, '^%d+|%d+|(%a)') ~= 'A' or tonumber(now) >= coupon_ends then
    return { 'INVALID_COUPON' }
  end
end

-- Doubles are exact up to 2^53 and round monotonically above it, so a sum past the bound can't slip under it.
local total, lines = 0, {}
for i = 1, n do
  total = total + tonumber(prices[i]) * units[i]
  if total > MAX_SAFE_INTEGER then return { 'OVERFLOW' } end
  lines[i] = ids[i] .. ':' .. ARGV[14 + 2 * i] .. ':' .. prices[i]
end
local _, far_units, far_prices = unpack_lines(far)
for i = 1, #far_units do
  total = total + far_units[i] * far_prices[i]
  if total > MAX_SAFE_INTEGER then return { 'OVERFLOW' } end
end
local packed = table.concat(lines, ',')

local discount = 0
if coupon_id ~= '' then
  if discount_type == 'PERCENTAGE' then
    -- floor(total * percent / 100) without leaving the exact integers
    local rest = total % 100
    discount = (total - rest) / 100 * discount_amount + math.floor(rest * discount_amount / 100)
  else
    discount = math.min(discount_amount, total)
  end
end
local final = total - discount
if must_afford and tonumber(u[2]) < final then return { 'INSUFFICIENT_BALANCE' } end
local reply = { 'PLACED', epoch, seq, order_id, final, now }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'order_placed', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'lines', packed, 'far', far, 'total', total,
  'discount', discount, 'final', final, 'coupon', coupon_id, 'expires_at', expires_at,
  record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', order, 'user', user_id, 'status', 'PENDING', 'lines', packed, 'far', far, 'total', total,
  'discount', discount, 'final', final, 'coupon', coupon_id, 'placed_at', now, 'expires_at', expires_at)
redis.call('ZADD', expiry, expires_at, order_id)
redis.call('HINCRBY', user, 'open', 1)
move_units(ids, units, stock, held)
mark_coupon(coupons, coupon_id, 'H', order_id, '')
return remember(record, fingerprint, ttl, reply)
