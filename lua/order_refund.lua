#!lua
-- Refunds a part of a PAID order: some units of its lines, and their share of what was paid, by the method it was paid with. The
-- order stays PAID, with what is left of it in its lines and its price; the lines as they were ordered move to `ordered`. A part
-- that leaves nothing is refused: order_close refunds the last one.
--
-- The shares are rounded down cumulatively, so that all parts together are exactly what was paid.
--
-- KEYS 1 meta         hash    partition state
--      2 outbox       stream
--      3 record       list    idempotency record
--      4 user         hash    name balance entries tail open, by coupon id the user's coupons, and what the user has of limits
--      5 order        hash
--      6 stock        hash    product id -> units on sale
--      7 sold         hash    product id -> units sold
--      8 quarantined  hash    product id -> refunded units that stay off sale
--      9 rank_units   zset    units by product on the day of the sale
--     10 rank_won     zset    won by product on that day
--     11 gateway      zset    order id by the next check of its gateway payment (ms)
--     12 freed        hash    product id -> units that ever came back on sale
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 order id  6 user id
--      7 the day of the sale, of KEYS 9 and 10, YYYYMMDD  8 when the rankings of that day expire (ms)
--      9 how long after its payment the order may be refunded (ms), '' for any time
--     10 '1' if the units come back on sale, '0' if they stay off sale  11 operator or ''  12 reason or ''
--     13 maximum of parts that a gateway has not refunded yet  then of each line: product id, units
-- Returns {'REFUNDED', epoch, seq, lines left, price left, at}
--      or {'REPLAYED', ...that, or the reply of order_close} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or ORDER_NOT_FOUND | NOT_PAID | ALREADY_CLOSED | WINDOW_CLOSED
--      or NOT_REFUNDABLE (a line has fewer units left, or is not in the order)
--      or STALE (the day is another one, or nothing would be left)
-- Emits order_refunded
--@include lists
--@include partition
--@include idempotency
--@include holds
--@include payment
--@include shares
local meta, outbox, record, user, order, rank_units, rank_won, gateway =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[9], KEYS[10], KEYS[11]
local stock, sold, quarantined, freed =
  new_counters(KEYS[6]), new_counters(KEYS[7]), new_counters(KEYS[8]), new_counters(KEYS[12])
local now, fingerprint, ttl, request_id, order_id, user_id, day, day_until, window, restock, operator, why, max_due =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11],
  ARGV[12], tonumber(ARGV[13])

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local o = redis.call('HMGET', order, 'user', 'status', 'final', 'lines', 'total', 'discount', 'receipt', 'payment', 'gateway',
  'ordered', 'refunds', 'due')
if not o[1] or o[1] ~= user_id then return { 'ORDER_NOT_FOUND' } end
if o[2] == 'PENDING' then return { 'NOT_PAID' } end
if o[2] ~= 'PAID' then return { 'ALREADY_CLOSED' } end
local receipt, _, _, method, paid_at, sold_on = o[7], payment_of(o[8])
if window ~= '' and tonumber(now) - tonumber(paid_at) >= tonumber(window) then return { 'WINDOW_CLOSED' } end
-- The gateway has not confirmed yet that it took the money, or owes too many parts.
local due = o[12] or ''
local _, due_parts = string.gsub(due, '[^,]+', '')
if o[9] == 'UNCONFIRMED' or due_parts >= max_due then return { 'IN_PROGRESS' } end
if sold_on ~= day then return { 'STALE' } end

local wanted, unmatched = {}, 0
for i = 14, #ARGV, 2 do
  if not wanted[ARGV[i]] then unmatched = unmatched + 1 end
  wanted[ARGV[i]] = (wanted[ARGV[i]] or 0) + tonumber(ARGV[i + 1])
end
-- The packed lines of the part, and of what is left.
local part, left, left_value = {}, {}, 0
for id, quantity, price, limit in string.gmatch(o[4], '(%d+):(%d+):(%d+)([^,]*)') do
  local units, rest = wanted[id] or 0, tonumber(quantity)
  if units > 0 then
    unmatched, rest = unmatched - 1, rest - units
    if rest < 0 then return { 'NOT_REFUNDABLE' } end
    part[#part + 1] = id .. ':' .. whole(units) .. ':' .. price .. limit
  end
  if rest > 0 then
    left[#left + 1] = id .. ':' .. whole(rest) .. ':' .. price .. limit
    left_value = left_value + rest * tonumber(price)
  end
end
if unmatched > 0 then return { 'NOT_REFUNDABLE' } end
if #left == 0 then return { 'STALE' } end
local part_lines, left_lines = table.concat(part, ','), table.concat(left, ',')

local total = tonumber(o[5])
local paid = total - tonumber(o[6])
local left_price = paid - share_of(paid, total - left_value, total)
local amount = tonumber(o[3]) - left_price
local by_gateway = method == 'GATEWAY'
local credit = by_gateway and 0 or amount
local u = redis.call('HMGET', user, 'balance', 'entries', 'tail', 'name')
-- A user that was forgotten asks for nothing more.
if operator == '' and not u[4] then return { 'ORDER_NOT_FOUND' } end
local before, entry_no = tonumber(u[1]), tonumber(u[2])
local after = before + credit
if credit > 0 then entry_no = entry_no + 1 end
local ids, units, prices = unpack_lines(part_lines)
local to_units = restock == '1' and stock or quarantined
sold.load(ids)
to_units.load(ids)
move_units(ids, units, sold, to_units)
if to_units == stock then count_freed(freed, ids, units) end
local counts = {}
give_back(counts, user, part_lines)
local number = whole(tonumber(o[11] or 0) + 1)
local fields = { 'lines', left_lines, 'final', whole(left_price), 'refunds', number, 'ordered', o[10] or o[4] }
local is_due = by_gateway and amount > 0
if is_due then
  fields[#fields + 1] = 'due'
  fields[#fields + 1] = (due == '' and '' or due .. ',') .. number .. ':' .. whole(amount) .. ':' .. now
end
local day_counts = tonumber(day_until) > tonumber(now)
local reply = { 'REFUNDED', epoch, seq, left_lines, whole(left_price), now }
---- checks above, writes below -------------------------------------------------------------------------------------
local id = redis.call('XADD', outbox, '*', 'v', 4, 'kind', 'order_refunded', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'order', order_id, 'user', user_id, 'part', number, 'lines', part_lines, 'left', left_lines,
  'amount', whole(amount), 'quarantined',
  restock == '1' and '0' or '1', 'receipt', receipt, 'method', method, 'day', day, 'operator', operator,
  'why', why, 'credit', whole(credit), 'before', whole(before), 'after', whole(after), 'entry_no', whole(entry_no),
  'prev', u[3], record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
write_in_chunks('HSET', order, fields)
-- It may be set to expire; it stays until Postgres has this decision, too.
redis.call('PERSIST', order)
if credit > 0 then redis.call('HSET', user, 'balance', whole(after), 'entries', whole(entry_no), 'tail', id) end
sold.write()
to_units.write()
freed.write()
if day_counts then unrank(ids, units, prices, rank_units, rank_won) end
write_counts(user, counts)
-- A check that is planned stays: it refunds the earlier parts first.
if is_due then redis.call('ZADD', gateway, 'NX', now, order_id) end
return remember(record, fingerprint, ttl, reply)
