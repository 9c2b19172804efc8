#!lua
-- Takes back units of a product that another partition has given back, on sale or withheld. A repeat changes nothing.
--
-- KEYS 1 meta      hash    partition state
--      2 outbox    stream
--      3 units     hash    product id -> units on sale, or units withheld
--      4 regained  hash    "product:partition" -> units ever taken back of that kind
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 product id  4 the other partition
--      5 units that it ever gave back  6 '1' for withheld units, '0' for units on sale
-- Returns {'REGAINED', epoch, seq} or ALREADY_REGAINED | PRODUCT_NOT_FOUND | PARTITION_CLOSED
-- Emits stock_regained
--@include lists
--@include partition
local meta, outbox, counter, regained = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, request_id, product_id, other, total, withheld =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local had = tonumber(redis.call('HGET', counter, product_id))
-- Every product of this partition is on sale, with 0 units at least.
if not had and withheld == '0' then return { 'PRODUCT_NOT_FOUND' } end
local field = product_id .. ':' .. other
local units = total - tonumber(redis.call('HGET', regained, field) or 0)
if units <= 0 then return { 'ALREADY_REGAINED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_regained', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'product', product_id, 'partition', other, 'units', whole(units), 'total', whole(total),
  'withheld', withheld)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', counter, product_id, whole((had or 0) + units))
redis.call('HSET', regained, field, whole(total))
return { 'REGAINED', epoch, seq }
