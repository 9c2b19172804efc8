#!lua
-- Takes over the price and the terms of sale of a product of another partition. An older price changes nothing. There is no event,
-- because a rebuild takes prices from the products.
--
-- KEYS 1 meta     hash  partition state
--      2 price    hash  product id -> won, or won with the terms of sale
--      3 version  hash  product id -> number of the price
--      4 stock    hash  product id -> units on sale
-- ARGV 1 product id  2 price (won), with the terms of sale  3 its number
-- Returns PRICE_SET | UNCHANGED | PARTITION_CLOSED
--@include partition
local meta, prices, versions, stock = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local product_id, price, version = ARGV[1], ARGV[2], ARGV[3]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local known = redis.call('HGET', versions, product_id)
if known and tonumber(known) >= tonumber(version) then return { 'UNCHANGED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', prices, product_id, price)
redis.call('HSET', versions, product_id, version)
redis.call('HSETNX', stock, product_id, 0)
return { 'PRICE_SET' }
