#!lua
-- Applies the end of an order to the stock that this partition holds for it. A repeat changes nothing. An end that arrives before
-- its hold leaves a tombstone, which stops the hold. A hold that is released because no order followed is deleted where its
-- beginning can no longer arrive.
--
-- KEYS 1 meta        hash    partition state
--      2 outbox      stream
--      3 hold        hash    state (HELD SETTLED RELEASED REFUNDED) lines user
--      4 holds       zset    "order:user" by the check of the hold (ms)
--      5 stock       hash    product id -> units on sale
--      6 held        hash    product id -> units held
--      7 sold        hash    product id -> units sold
--      8 rank_units  zset    units by product on the day of the sale
--      9 rank_won    zset    won by product on that day
--     10 withheld    hash    product id -> units withheld after a loss
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 order id  4 user id  5 SETTLED | RELEASED | REFUNDED
--      6 when the rankings of the day of the sale expire (ms), or '0'
--      7 life of a tombstone (ms)  8 '1' where the hold may still arrive, else '0'
-- Returns {'MOVED', epoch, seq} or TOMBSTONED (there was no hold, and none can follow) | UNCHANGED
--      or HOLD_NOT_FOUND (it never began, or is final and was evicted) | PARTITION_CLOSED
-- Emits stock_settled
--@include lists
--@include partition
--@include holds
local meta, outbox, hold, holds, rank_units, rank_won = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[8], KEYS[9]
local stock, held, sold, withheld =
  new_counters(KEYS[5]), new_counters(KEYS[6]), new_counters(KEYS[7]), new_counters(KEYS[10])
local now, request_id, order_id, user_id, state, day_until, tombstone_ttl, may_arrive =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local h = redis.call('HMGET', hold, 'state', 'lines', 'doubt')
local was, lines = h[1] or '', h[2] or ''
if was == '' and not (may_arrive and state == 'RELEASED') then return { 'HOLD_NOT_FOUND' } end
-- The hold has begun, so that no tombstone is needed against a hold that arrives later.
local deletes = was == 'HELD' and state == 'RELEASED' and not may_arrive
local moves = was == '' or was == 'HELD' or (was == 'SETTLED' and state == 'REFUNDED')
if not moves then return { 'UNCHANGED' } end
local ids, units, prices = unpack_lines(lines)
-- A lost decision may have paid the order, and its user has seen that reply.
local suspect = h[3] == '1' and was == 'HELD' and state == 'RELEASED'
-- From which counter to which one its units move. (A refund that overtakes its settlement ends where both would end.)
local from_units, to_units
if was == 'HELD' then
  from_units, to_units = held, stock
  if state == 'SETTLED' then to_units = sold elseif suspect then to_units = withheld end
elseif was == 'SETTLED' then
  from_units, to_units = sold, stock
end
if from_units then
  from_units.load(ids)
  to_units.load(ids)
  move_units(ids, units, from_units, to_units)
end
local day_counts = tonumber(day_until) > tonumber(now)
local sold_units, won = {}, {}
for i = 1, #ids do sold_units[ids[i]], won[ids[i]] = units[i], units[i] * prices[i] end
---- checks above, writes below -------------------------------------------------------------------------------------
if was ~= '' then
  redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_settled', 'epoch', epoch, 'seq', seq, 'at', now,
    'rid', request_id, 'order', order_id, 'user', user_id, 'lines', lines, 'from', was, 'to', state,
    'withheld', suspect and '1' or '0', 'forgotten', deletes and '1' or '0')
  redis.call('HSET', meta, 'seq', seq)
end
redis.call('HSET', hold, 'state', state, 'lines', lines, 'user', user_id)
redis.call('ZREM', holds, order_id .. ':' .. user_id)
if deletes then
  redis.call('DEL', hold)
elseif state == 'RELEASED' then
  redis.call('PEXPIRE', hold, tombstone_ttl)
else
  -- It may be set to expire; it stays until Postgres has this decision, too.
  redis.call('PERSIST', hold)
end
if from_units then
  from_units.write()
  to_units.write()
end
if day_counts and was == 'HELD' and state == 'SETTLED' then
  rank(sold_units, won, rank_units, rank_won, seconds_until(day_until, now))
elseif day_counts and was == 'SETTLED' then
  unrank(ids, units, prices, rank_units, rank_won)
end
if was == '' then return { 'TOMBSTONED' } end
return { 'MOVED', epoch, seq }
