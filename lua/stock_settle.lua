#!lua
-- Carries what became of an order into the stock held for it in this partition. Repeating it changes nothing, and an end
-- that comes before its beginning leaves a mark that the beginning obeys. What is given back because no order came of it is
-- forgotten where it is certain that it has begun.
--
-- KEYS 1 meta        hash    the partition's books
--      2 outbox      stream
--      3 hold        hash    state (HELD SETTLED RELEASED REFUNDED) lines user
--      4 holds       zset    "order:user" by when the hold is looked at (ms)
--      5 stock       hash    product id -> units on sale
--      6 held        hash    product id -> units held
--      7 sold        hash    product id -> units sold
--      8 rank_units  zset    units by product of the day of the sale
--      9 rank_won    zset    won by product of that day
--     10 withheld    hash    product id -> units kept off sale after a loss
-- ARGV 1 '' (a test's clock, ms)  2 request id  3 order id  4 user id  5 SETTLED | RELEASED | REFUNDED
--      6 until when the rankings of the day of the sale count (ms), or '0'
--      7 the life of an ended hold's mark (ms)  8 '1' where the beginning may still come, else '0'
-- Returns {'MOVED', epoch, seq} or MARKED (there was nothing yet, and now nothing can come) | UNCHANGED
--      or GONE (there is nothing: it never began, or is over and has left) | CLOSED_BOOKS
-- Emits stock_settled
--@include lists
--@include partition
--@include holds
local meta, outbox, hold, holds, rank_units, rank_won = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[8], KEYS[9]
local stock, held, sold, withheld =
  new_counters(KEYS[5]), new_counters(KEYS[6]), new_counters(KEYS[7]), new_counters(KEYS[10])
local now, request_id, order_id, user_id, state, day_until, mark_life, marks =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local h = redis.call('HMGET', hold, 'state', 'lines', 'doubt')
local was, lines = h[1] or '', h[2] or ''
if was == '' and not (marks and state == 'RELEASED') then return { 'GONE' } end
-- It has begun, so that no beginning can come any more that a mark would have to keep off.
local forgets = was == 'HELD' and state == 'RELEASED' and not marks
local moves = was == '' or was == 'HELD' or (was == 'SETTLED' and state == 'REFUNDED')
if not moves then return { 'UNCHANGED' } end
local ids, units, prices = unpack_lines(lines)
-- In doubt: decisions that were lost may have paid the order, and its user was told so.
local doubtful = h[3] == '1' and was == 'HELD' and state == 'RELEASED'
-- Where its units are, and where they go. (A refund that overtook its settlement ends where both would have ended.)
local from_units, to_units
if was == 'HELD' then
  from_units, to_units = held, stock
  if state == 'SETTLED' then to_units = sold elseif doubtful then to_units = withheld end
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
    'withheld', doubtful and '1' or '0', 'forgotten', forgets and '1' or '0')
  redis.call('HSET', meta, 'seq', seq)
end
redis.call('HSET', hold, 'state', state, 'lines', lines, 'user', user_id)
redis.call('ZREM', holds, order_id .. ':' .. user_id)
if forgets then
  redis.call('DEL', hold)
elseif state == 'RELEASED' then
  redis.call('PEXPIRE', hold, mark_life)
else
  -- It may have been about to leave; it stays until Postgres has this, too.
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
if was == '' then return { 'MARKED' } end
return { 'MOVED', epoch, seq }
