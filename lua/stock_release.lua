#!lua
-- Puts units back on sale that a rebuild held back.
--
-- KEYS 1 meta      hash    the partition's books
--      2 outbox    stream
--      3 record    list    the idempotency record
--      4 stock     hash    product id -> units on sale
--      5 withheld  hash    product id -> units held back
-- ARGV 1 '' (a test's clock, ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 product id  6 units
-- Returns {'UNITS_RELEASED', epoch, seq, units still held back}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | CLOSED_BOOKS
--      or PRODUCT_NOT_FOUND | INSUFFICIENT_STOCK (less is held back)
-- Emits stock_released
--@include lists
--@include partition
local meta, outbox, record, stock, withheld = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, fingerprint, ttl, request_id, product_id, units =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local on_sale = redis.call('HGET', stock, product_id)
if not on_sale then return { 'PRODUCT_NOT_FOUND' } end
local left = tonumber(redis.call('HGET', withheld, product_id) or 0) - units
if left < 0 then return { 'INSUFFICIENT_STOCK' } end
local reply = { 'UNITS_RELEASED', epoch, seq, left }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_released', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'product', product_id, 'units', units, record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', stock, product_id, tonumber(on_sale) + units)
redis.call('HSET', withheld, product_id, left)
return remember(record, fingerprint, ttl, reply)
