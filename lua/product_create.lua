#!lua
-- Adds a new product to the catalogue and puts its units on sale; leaves one that exists as it is.
--
-- KEYS 1 meta         hash    partition state
--      2 outbox       stream
--      3 record       list    idempotency record
--      4 product      hash    name category stocked (units ever put on sale)
--      5 price        hash    product id -> won, or won with the terms of sale
--      6 stock        hash    product id -> units on sale
--      7 catalogue    zset    product id by itself
--      8 of_category  zset    product id by itself, of one category
--      9 version      hash    product id -> number of the price and the terms
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 product id  6 name
--      7 price (won)  8 units  9 category
--      10 terms of sale or '': when it opens and closes (ms), limit per user, group, separated by '|'; an empty part is no term
-- Returns {'CREATED', epoch, seq} or {'REPLAYED', ...that, or the reply of product_update} | KEY_REUSED | IN_PROGRESS
--      or ALREADY_EXISTS | PARTITION_CLOSED
-- Emits product_created
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record, product, price, stock, catalogue, of_category, versions =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local now, fingerprint, ttl, request_id, product_id, name, won, units, category, terms =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
if redis.call('EXISTS', product) == 1 then return { 'ALREADY_EXISTS' } end
local priced = terms == '' and won or won .. '|' .. terms
local reply = { 'CREATED', epoch, seq }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'product_created', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'product', product_id, 'name', name, 'price', won, 'units', units, 'category', category, 'terms', terms,
  record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', product, 'name', name, 'category', category, 'stocked', units)
redis.call('HSET', price, product_id, priced)
if terms ~= '' then redis.call('HSET', versions, product_id, 1) end
redis.call('HSET', stock, product_id, units)
redis.call('ZADD', catalogue, product_id, product_id)
redis.call('ZADD', of_category, product_id, product_id)
return remember(record, fingerprint, ttl, reply)
