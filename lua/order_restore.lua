#!lua
-- Restores an order from Postgres for a decision that needs it in Redis. One that is in Redis stays as it is:
-- it is newer, or the same. This decides nothing, so there is no event; if the decision does not follow, the restored data
-- expires.
--
-- The data read from Postgres may be stale: another request may have refunded the order. Redis has it then, because a refund
-- keeps an order (order_close) until Postgres has the refund, and for a week after (order_evict).
-- A caller must have missed it in Redis first, then read Postgres, and call within a minute of that.
--
-- KEYS 1 meta   hash    partition state
--      2 order  hash
-- ARGV 1 how long it stays (ms)  then pairs: field, value
-- Returns RESTORED | ALREADY_PRESENT | PARTITION_CLOSED
--@include lists
--@include partition
local meta, key = KEYS[1], KEYS[2]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
if redis.call('HEXISTS', key, 'user') == 1 then return { 'ALREADY_PRESENT' } end
local fields = {}
for i = 2, #ARGV do fields[i - 1] = ARGV[i] end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('DEL', key)
write_in_chunks('HSET', key, fields)
redis.call('PEXPIRE', key, ARGV[1])
return { 'RESTORED' }
