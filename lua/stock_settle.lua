#!lua
-- Carries what became of an order into the stock held for it in this partition. Repeating it changes nothing, and an end
-- that comes before its beginning leaves a mark that the beginning obeys.
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
-- ARGV 1 now (ms)  2 request id  3 order id  4 user id  5 SETTLED | RELEASED | REFUNDED
--      6 '1' where the day of the sale still counts, else '0'  7 the life of its rankings from now (s)
--      8 the life of an ended hold's mark (ms)  9 '1' where the beginning may still come, else '0'
-- Returns {'MOVED', epoch, seq} or MARKED (there was nothing yet, and now nothing can come) | UNCHANGED
--      or GONE (there is nothing: it never began, or is over and has left) | CLOSED_BOOKS
-- Emits stock_settled
--@include books
--@include holds
local meta, outbox, hold, holds, stock, held, sold, rank_units, rank_won, withheld =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local now, request_id, order_id, user_id, state, day_counts, rank_life, mark_life, marks =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1', ARGV[7], ARGV[8], ARGV[9] == '1'

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local h = redis.call('HMGET', hold, 'state', 'lines', 'doubt')
local was, lines = h[1] or '', h[2] or ''
if was == '' and not (marks and state == 'RELEASED') then return { 'GONE' } end
local moves = was == '' or was == 'HELD' or (was == 'SETTLED' and state == 'REFUNDED')
if not moves then return { 'UNCHANGED' } end
local ids, units, prices = unpack_lines(lines)
-- In doubt: decisions that were lost may have paid the order, and its user was told so.
local doubtful = h[3] == '1' and was == 'HELD' and state == 'RELEASED'
---- checks above, writes below -------------------------------------------------------------------------------------
if was ~= '' then
  redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_settled', 'epoch', epoch, 'seq', seq, 'at', now,
    'rid', request_id, 'order', order_id, 'user', user_id, 'lines', lines, 'from', was, 'to', state,
    'withheld', doubtful and '1' or '0')
  redis.call('HSET', meta, 'seq', seq)
end
redis.call('HSET', hold, 'state', state, 'lines', lines, 'user', user_id)
redis.call('ZREM', holds, order_id .. ':' .. user_id)
if state == 'RELEASED' then
  redis.call('PEXPIRE', hold, mark_life)
else
  -- It may have been about to leave; it stays until Postgres has this, too.
  redis.call('PERSIST', hold)
end
if was == 'HELD' then
  if state == 'SETTLED' then
    move_units(ids, units, held, sold)
    if day_counts then
      local won, sold_units = {}, {}
      for i = 1, #ids do sold_units[ids[i]], won[ids[i]] = units[i], units[i] * prices[i] end
      rank(sold_units, won, rank_units, rank_won, rank_life)
    end
  else
    -- A refund that overtook its settlement ends where both would have ended.
    move_units(ids, units, held, doubtful and withheld or stock)
  end
elseif was == 'SETTLED' then
  move_units(ids, units, sold, stock)
  if day_counts then unrank(ids, units, prices, rank_units, rank_won) end
end
if was == '' then return { 'MARKED' } end
return { 'MOVED', epoch, seq }
