#!lua
-- Puts the units on sale that the owner partition of a product gave to this one. A repeat changes nothing.
--
-- KEYS 1 meta      hash    partition state
--      2 outbox    stream
--      3 price     hash    product id -> won, or won with the terms of sale
--      4 version   hash    product id -> number of the price
--      5 stock     hash    product id -> units on sale
--      6 received  hash    product id -> units ever received
--      7 freed     hash    product id -> units that ever came back on sale
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 product id  4 units ever given by the owner partition
--      5 price (won), with the terms of sale  6 its number
-- Returns {'RECEIVED', epoch, seq} or ALREADY_RECEIVED | PARTITION_CLOSED
-- Emits stock_received
--@include lists
--@include partition
local meta, outbox, prices, versions, stock, received, freed =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local now, request_id, product_id, total, price, version =
  current_time(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local units = total - tonumber(redis.call('HGET', received, product_id) or 0)
if units <= 0 then return { 'ALREADY_RECEIVED' } end
local on_sale = tonumber(redis.call('HGET', stock, product_id) or 0)
local known = redis.call('HGET', versions, product_id)
-- A newer price may have come before the units.
local is_newer = not known or tonumber(known) < tonumber(version)
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_received', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'product', product_id, 'units', whole(units), 'total', whole(total))
redis.call('HSET', meta, 'seq', seq)
if is_newer then
  redis.call('HSET', prices, product_id, price)
  redis.call('HSET', versions, product_id, version)
end
redis.call('HSET', stock, product_id, whole(on_sale + units))
redis.call('HSET', received, product_id, whole(total))
redis.call('HINCRBY', freed, product_id, whole(units))
return { 'RECEIVED', epoch, seq }
