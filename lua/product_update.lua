#!lua
-- Changes a product's name, price (placed orders keep theirs), category, terms of sale, and units on sale.
--
-- KEYS 1 meta          hash    partition state
--      2 outbox        stream
--      3 record        list    idempotency record
--      4 product       hash    name category stocked
--      5 price         hash    product id -> won, or won with the terms of sale
--      6 stock         hash    product id -> units on sale
--      7 old_category  zset    product ids of its category
--      8 new_category  zset    product ids of its new category (the same key if unchanged)
--      9 version       hash    product id -> number of the price
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 product id  6 name or ''
--      7 price (won) or ''  8 its category  9 its new category
--      10 units to add (or, negative, to remove)  11 maximum of a product's units
--      12 units that other partitions have on sale, for the reply
--      13 '1' to change the terms of sale  14 its terms or ''  15 its new terms or ''
-- Returns {'UPDATED', epoch, seq, name, price, units on sale, category, number of the price, terms of sale}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or PRODUCT_NOT_FOUND | STALE (its category or its terms are others) | INSUFFICIENT_STOCK | LIMIT_EXCEEDED
-- Emits product_updated
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record, product, price, stock, old_category, new_category, versions =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local now, fingerprint, ttl, request_id, product_id, name, won, had, category, delta, limit =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10]),
  tonumber(ARGV[11])

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local p = redis.call('HMGET', product, 'name', 'category', 'stocked')
if not p[1] then return { 'PRODUCT_NOT_FOUND' } end
if p[2] ~= had then return { 'STALE' } end
local units, stocked = tonumber(redis.call('HGET', stock, product_id)) + delta, tonumber(p[3]) + delta
if units < 0 then return { 'INSUFFICIENT_STOCK' } end
if stocked > limit then return { 'LIMIT_EXCEEDED' } end
if name == '' then name = p[1] end
local version = tonumber(redis.call('HGET', versions, product_id) or 0)
local was_won, terms = string.match(redis.call('HGET', price, product_id), '^(%d+)|?(.*)$')
if ARGV[13] == '1' then
  if terms ~= ARGV[14] then return { 'STALE' } end
  terms = ARGV[15]
end
local changed = won ~= '' or ARGV[13] == '1'
if won == '' then won = was_won end
if changed then version = version + 1 end
local priced = terms == '' and won or won .. '|' .. terms
local reply = { 'UPDATED', epoch, seq, name, won, units + tonumber(ARGV[12]), category, version, terms }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'product_updated', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'product', product_id, 'name', name, 'price', won, 'category', category, 'delta', delta,
  'version', version, 'terms', terms, record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', product, 'name', name, 'category', category, 'stocked', stocked)
redis.call('HSET', price, product_id, priced)
if changed then redis.call('HSET', versions, product_id, version) end
redis.call('HSET', stock, product_id, units)
redis.call('ZREM', old_category, product_id)
redis.call('ZADD', new_category, product_id, product_id)
return remember(record, fingerprint, ttl, reply)
