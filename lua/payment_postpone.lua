#!lua
-- Puts off asking the gateway about a payment that it did not settle, and keeps what it said. That decides nothing, so there
-- is no event.
--
-- KEYS 1 meta     hash    the partition's books
--      2 order    hash
--      3 gateway  zset    order id by when its gateway payment is looked at next (ms; later by 2^52 where it is stuck)
-- ARGV 1 order id  2 receipt  3 the score in KEYS 3  4 what the gateway said
-- Returns POSTPONED | NOT_OPEN (the payment has ended, or is another) | CLOSED_BOOKS
--@include lists
--@include partition
local meta, order, gateway = KEYS[1], KEYS[2], KEYS[3]
local order_id, receipt, score, said = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local o = redis.call('HMGET', order, 'receipt', 'gateway_asks')
if o[1] ~= receipt or not redis.call('ZSCORE', gateway, order_id) then return { 'NOT_OPEN' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('ZADD', gateway, score, order_id)
redis.call('HSET', order, 'gateway_asks', tonumber(o[2] or 0) + 1, 'gateway_said', said)
return { 'POSTPONED' }
