#!lua
-- Puts units back on sale that a rebuild withheld.
--
-- KEYS 1 meta      hash    partition state
--      2 outbox    stream
--      3 record    list    idempotency record
--      4 stock     hash    product id -> units on sale
--      5 withheld  hash    product id -> units withheld
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 product id  6 units
-- Returns {'UNITS_RELEASED', epoch, seq, units still withheld}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or PRODUCT_NOT_FOUND | INSUFFICIENT_STOCK (fewer are withheld)
-- Emits stock_released
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record, stock, withheld = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, fingerprint, ttl, request_id, product_id, units =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
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
