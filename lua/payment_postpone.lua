#!lua
-- Postpones the next question to the gateway about a payment that it did not settle, and keeps its answer. This decides nothing,
-- so there is no event.
--
-- KEYS 1 meta     hash    partition state
--      2 order    hash
--      3 gateway  zset    order id by the next check of its gateway payment (ms; 2^52 later where it is stuck)
-- ARGV 1 order id  2 receipt  3 the score in KEYS 3  4 the gateway's answer
-- Returns POSTPONED | NOT_OPEN (the payment has ended, or is another one) | PARTITION_CLOSED
--@include partition
local meta, order, gateway = KEYS[1], KEYS[2], KEYS[3]
local order_id, receipt, score, said = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local o = redis.call('HMGET', order, 'receipt', 'gateway_asks')
if o[1] ~= receipt or not redis.call('ZSCORE', gateway, order_id) then return { 'NOT_OPEN' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('ZADD', gateway, score, order_id)
redis.call('HSET', order, 'gateway_asks', tonumber(o[2] or 0) + 1, 'gateway_said', said)
return { 'POSTPONED' }
