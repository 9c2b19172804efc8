#!lua
-- Tells a remote hold the state of its order. Where there is no such order, leaves a tombstone so that there never will be.
--
-- KEYS 1 meta   hash    state of the order's owner partition
--      2 order  hash
-- ARGV 1 life of the tombstone (ms)
-- Returns {'ORDER_STATUS', PENDING | PAID | CANCELLED | FAILED | ABANDONED, reason or '', day of the sale or ''}
--      or PARTITION_CLOSED
--@include partition
local meta, order = KEYS[1], KEYS[2]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local o = redis.call('HMGET', order, 'status', 'reason', 'day')
---- checks above, writes below -------------------------------------------------------------------------------------
if not o[1] then
  redis.call('HSET', order, 'status', 'ABANDONED')
  redis.call('PEXPIRE', order, ARGV[1])
end
return { 'ORDER_STATUS', o[1] or 'ABANDONED', o[2] or '', o[3] or '' }
