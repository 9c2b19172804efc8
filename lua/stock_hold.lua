#!lua
-- Holds stock of this partition for an order of another one, which then decides about the order. The hold ends with the order; if
-- no order followed, it ends when it is due and the owner partition was asked.
--
-- KEYS 1 meta    hash    partition state
--      2 outbox  stream
--      3 hold    hash    state (HELD SETTLED RELEASED REFUNDED) lines user
--      4 holds   zset    "order:user" by the check of the hold (ms)
--      5 price   hash    product id -> won
--      6 stock   hash    product id -> units on sale
--      7 held    hash    product id -> units held
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 order id  4 user id  5 delay of the check of the hold (ms)
--      6 n, then n pairs: product id, quantity
-- Returns {'HELD', epoch, seq, lines} | {'ALREADY_HELD', lines} | RELEASED (it was released before)
--      or {PRODUCT_NOT_FOUND, id} | {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id} | PARTITION_CLOSED
-- Emits stock_held
--@include lists
--@include partition
--@include holds
local meta, outbox, hold, holds = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prices, stock, held = new_counters(KEYS[5]), new_counters(KEYS[6]), new_counters(KEYS[7])
local now, request_id, order_id, user_id, n = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6])
local due = whole(tonumber(now) + tonumber(ARGV[5]))

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local h = redis.call('HMGET', hold, 'state', 'lines')
if h[1] == 'HELD' then return { 'ALREADY_HELD', h[2] } end
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
