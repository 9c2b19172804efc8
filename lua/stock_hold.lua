#!lua
-- Holds stock of this partition for an order at home in another one, which then decides. The hold ends with the order, or,
-- if no order came of it, when it is due and the home partition has been told so.
--
-- KEYS 1 meta    hash    the partition's books
--      2 outbox  stream
--      3 hold    hash    state (HELD SETTLED RELEASED REFUNDED) lines user
--      4 holds   zset    "order:user" by when the hold is looked at (ms)
--      5 price   hash    product id -> won
--      6 stock   hash    product id -> units on sale
--      7 held    hash    product id -> units held
-- ARGV 1 '' (a test's clock, ms)  2 request id  3 order id  4 user id  5 how much later to look at the hold (ms)  6 n, then n pairs: product id, quantity
-- Returns {'HELD', epoch, seq, lines} | {'HELD_BEFORE', lines} | RELEASED (it came back before)
--      or {PRODUCT_NOT_FOUND, id} | {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id} | CLOSED_BOOKS
-- Emits stock_held
--@include lists
--@include partition
--@include holds
local meta, outbox, hold, holds = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prices, stock, held = new_counters(KEYS[5]), new_counters(KEYS[6]), new_counters(KEYS[7])
local now, request_id, order_id, user_id, n = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6])
local due = whole(tonumber(now) + tonumber(ARGV[5]))

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local h = redis.call('HMGET', hold, 'state', 'lines')
if h[1] == 'HELD' then return { 'HELD_BEFORE', h[2] } end
if h[1] then return { 'RELEASED' } end
local ids, units = {}, {}
for i = 1, n do ids[i], units[i] = ARGV[5 + 2 * i], tonumber(ARGV[6 + 2 * i]) end
prices.load(ids)
stock.load(ids)
held.load(ids)
local short = shortage(ids, units, prices.get, stock.get)
if short then return short end
move_units(ids, units, stock, held)
local lines = {}
for i = 1, n do lines[i] = ids[i] .. ':' .. ARGV[6 + 2 * i] .. ':' .. whole(prices.get(ids[i])) end
local packed = table.concat(lines, ',')
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'stock_held', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'lines', packed)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', hold, 'state', 'HELD', 'lines', packed, 'user', user_id)
redis.call('ZADD', holds, due, order_id .. ':' .. user_id)
stock.write()
held.write()
return { 'HELD', epoch, seq, packed }
