#!lua
-- Gives everything that this partition has of a product of another one, on sale or withheld, back to it. stock_regain must
-- follow, there; the relay sees to it.
--
-- KEYS 1 meta      hash    partition state
--      2 outbox    stream
--      3 units     hash    product id -> units on sale, or units withheld
--      4 returned  hash    product id -> units ever given back of that kind
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 product id  4 '1' for withheld units, '0' for units on sale
-- Returns {'RETURNED', epoch, seq, units ever given back}
--      or {'ALREADY_RETURNED', units ever given back} (there is nothing left) | PARTITION_CLOSED
-- Emits stock_returned
--@include lists
--@include partition
local meta, outbox, counter, returned = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, request_id, product_id, withheld = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local units = tonumber(redis.call('HGET', counter, product_id) or 0)
local before = tonumber(redis.call('HGET', returned, product_id) or 0)
if units == 0 then return { 'ALREADY_RETURNED', whole(before) } end
local total = whole(before + units)
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_returned', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'product', product_id, 'units', whole(units), 'total', total, 'withheld', withheld)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', counter, product_id, 0)
redis.call('HSET', returned, product_id, total)
return { 'RETURNED', epoch, seq, total }
