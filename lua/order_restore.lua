#!lua
-- Brings back what has left Redis, as Postgres has it, for a decision that needs it here: an order, or the stock held for one
-- at home elsewhere. What is here stays as it is: it is newer, or the same. That decides nothing, so there is no event; and if
-- the decision does not come, it leaves again.
--
-- What was read in Postgres may be out of date by now: the order refunded by somebody else. Then it is here: a refund keeps an
-- order (order_close), and a far hold (stock_settle), until Postgres has it, and for a week from then on (order_evict).
-- Whoever calls this has found nothing here first, read Postgres after that, and comes within a minute, or does not call.
--
-- KEYS 1 meta  hash    the partition's books
--      2       hash    the order, or the far hold
-- ARGV 1 how long it stays (ms)  then pairs: field, value
-- Returns RESTORED | THERE | CLOSED_BOOKS
--@include lists
--@include partition
local meta, key = KEYS[1], KEYS[2]

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
-- The mark of an order that never was (order_resolve) has no user.
if redis.call('HEXISTS', key, 'user') == 1 then return { 'THERE' } end
local fields = {}
for i = 2, #ARGV do fields[i - 1] = ARGV[i] end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('DEL', key)
write_in_pieces('HSET', key, fields)
redis.call('PEXPIRE', key, ARGV[1])
return { 'RESTORED' }
