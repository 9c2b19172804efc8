#!lua
-- Records that a gateway has refunded a part of an order: the earliest of those that are due. Otherwise it is asked about the next
-- one now.
--
-- KEYS 1 meta     hash    partition state
--      2 outbox   stream
--      3 order    hash
--      4 gateway  zset    order id by the next check of its gateway payment (ms)
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 order id  4 user id  5 receipt  6 number of the part
-- Returns {'FINISHED', epoch, seq} or NOT_OPEN | PARTITION_CLOSED
-- Emits refund_ended
--@include partition
local meta, outbox, order, gateway = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, request_id, order_id, user_id, receipt, part =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local o = redis.call('HMGET', order, 'receipt', 'due', 'gateway', 'refunds')
local first, others = string.match(o[2] or '', '^(%d+):[^,]*,?(.*)$')
if o[1] ~= receipt or first ~= part then return { 'NOT_OPEN' } end
local asks_on = others ~= '' or o[3] == 'REFUND_DUE'
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 4, 'kind', 'refund_ended', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'receipt', receipt, 'part', part,
  'refunds', o[4])
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', order, 'gateway_asks', 0)
if others ~= '' then
  redis.call('HSET', order, 'due', others)
else
  redis.call('HDEL', order, 'due')
end
if asks_on then
  redis.call('ZADD', gateway, now, order_id)
else
  redis.call('ZREM', gateway, order_id)
end
return { 'FINISHED', epoch, seq }
