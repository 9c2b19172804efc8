#!lua
-- Gives units of a product to another partition, which then sells them alone: what the caller needs, or a larger lot where enough
-- is on sale. stock_receive must follow, there; the relay sees to it. The counts of a transfer only grow, so that a repeat of
-- either step changes nothing.
--
-- KEYS 1 meta      hash    partition state
--      2 outbox    stream
--      3 price     hash    product id -> won, or won with the terms of sale
--      4 version   hash    product id -> number of the price
--      5 stock     hash    product id -> units on sale
--      6 allotted  hash    "product:partition" -> units ever given
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 product id  4 the other partition  5 units needed
--      6 lots into which the units on sale are divided  7 maximum units of a lot
-- Returns {'ALLOTTED', epoch, seq, units ever given, price, its number, terms of sale}
--      or {'INSUFFICIENT_STOCK', units on sale, price, its number, terms of sale} (fewer than needed)
--      or PRODUCT_NOT_FOUND | PARTITION_CLOSED
-- Emits stock_allotted
--@include lists
--@include partition
local meta, outbox, prices, versions, stock, allotted = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local now, request_id, product_id, other, needed, lots, max_lot =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local on_sale = tonumber(redis.call('HGET', stock, product_id))
if not on_sale then return { 'PRODUCT_NOT_FOUND' } end
local price, terms = string.match(redis.call('HGET', prices, product_id), '^(%d+)|?(.*)$')
local version = redis.call('HGET', versions, product_id) or '0'
if on_sale < needed then return { 'INSUFFICIENT_STOCK', whole(on_sale), price, version, terms } end
local units = math.max(needed, math.min(math.ceil(on_sale / lots), max_lot))
local field = product_id .. ':' .. other
local total = whole(tonumber(redis.call('HGET', allotted, field) or 0) + units)
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_allotted', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'product', product_id, 'partition', other, 'units', whole(units), 'total', total, 'price', price,
  'version', version, 'terms', terms)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', stock, product_id, whole(on_sale - units))
redis.call('HSET', allotted, field, total)
return { 'ALLOTTED', epoch, seq, total, price, version, terms }
