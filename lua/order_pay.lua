#!lua
-- Settles PENDING orders, from the user's balance or because a gateway took the money. Decides a batch of requests of one day in
-- their order, up to a number of order lines; the rest go into the next call. A balance that is too low declines the payment:
-- in the same step the order becomes FAILED and its holds are released.
--
-- KEYS 1 meta        hash    partition state
--      2 outbox      stream
--      3 expiry      zset    order id by the end of its hold (ms)
--      4 stock       hash    product id -> units on sale
--      5 held        hash    product id -> units held
--      6 sold        hash    product id -> units sold
--      7 withheld    hash    product id -> units withheld after a loss
--      8 rank_units  zset    the day's units by product
--      9 rank_won    zset    the day's won by product
--     10 gateway     zset    order id by the next check of its gateway payment (ms)
--     11 freed       hash    product id -> units that ever came back on sale
--      then of each request
--        record      list    idempotency record
--        user        hash    name balance entries tail open, by coupon id the user's coupons, and what the user has of limits
--        order       hash
-- ARGV 1 now (ms) in tests, else ''  2 life of a record (ms)  3 the day, YYYYMMDD  4 its first instant (ms)
--      5 first instant after it (ms)  6 when its rankings expire (ms)  7 maximum of order lines in one call
--      then of each request: fingerprint or '', request id, order id, user id, amount (won), payment type,
--        payment id, receipt, BALANCE | GATEWAY, the gateway's transaction id or ''
-- Returns of each request that the call decides, the first at least, packed,
--         {'PAID', epoch, seq, payment id, receipt, paid at} | {'DECLINED', epoch, seq}
--      or {'PAID_BEFORE', payment id, receipt, paid at} (a repeat of a gateway's approval)
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or ORDER_NOT_FOUND | ALREADY_PAID | ALREADY_CLOSED | WRONG_AMOUNT
--      or {'OTHER_DAY', now (ms)} (the day is over, or has not begun)
--      of the whole batch PARTITION_CLOSED
-- Emits order_paid, or order_closed (FAILED, PAYMENT_DECLINED), for each
--@include lists
--@include partition
--@include idempotency
--@include batch
--@include holds
--@include payment
local meta, outbox, expiry, rank_units, rank_won, gateway = KEYS[1], KEYS[2], KEYS[3], KEYS[8], KEYS[9], KEYS[10]
local stock, held, sold, withheld =
  new_counters(KEYS[4]), new_counters(KEYS[5]), new_counters(KEYS[6]), new_counters(KEYS[7])
local freed = new_counters(KEYS[11])
local now, ttl, day, rank_until, max_lines = current_time(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[6]), tonumber(ARGV[7])
local now_ms = tonumber(now)
local n = (#KEYS - 11) / 3

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local records, users, orders, replies, events = new_records(), {}, {}, {}, {}
if now_ms < tonumber(ARGV[4]) or now_ms >= tonumber(ARGV[5]) then
  for i = 1, n do replies[i] = 'OTHER_DAY' .. SEPARATOR .. now end
  return replies
end

-- The pending writes: orders with their new fields, keys of users, order ids, and the day's sales by product.
local ended, ended_keys, touched, expired, confirmed, ranked_units, ranked_won = {}, {}, {}, {}, {}, {}, {}
-- The number of lines of the orders decided so far.
local lines = 0

local function order_of(key)
  local order = orders[key]
  if not order then
    local o = redis.call('HMGET', key, 'user', 'status', 'final', 'lines', 'coupon', 'gateway', 'receipt', 'payment',
      'doubt')
    local payment_id, _, _, paid_at = payment_of(o[8])
    order = { user = o[1], status = o[2], final = tonumber(o[3]), lines = o[4], coupon = o[5], gateway = o[6],
      receipt = o[7], payment = payment_id, paid_at = paid_at,
      -- A lost decision may have paid the order, and its user has seen that reply.
      suspect = o[9] == '1' }
    orders[key] = order
  end
  return order
end

local function user_of(key)
  local user = users[key]
  if not user then
    local u = redis.call('HMGET', key, 'balance', 'entries', 'tail', 'open')
    -- `won`: the balance as text; so are the entries.
    user = { balance = tonumber(u[1]), won = u[1], entries = u[2], tail = u[3], open = tonumber(u[4]), coupons = {} }
    users[key] = user
  end
  return user
end

-- Moves an order's units, and changes its user's number of open orders and its coupon.
local function release(order, user_key, from, to, state, order_id, used_at)
  local user = user_of(user_key)
  user.open = user.open - 1
  if order.coupon ~= '' then
    local coupon = user.coupons[order.coupon] or redis.call('HGET', user_key, order.coupon)
    if coupon then user.coupons[order.coupon] = coupon_in_state(coupon, state, order_id, used_at) end
  end
  local ids, units, prices = unpack_lines(order.lines)
  from.load(ids)
  to.load(ids)
  move_units(ids, units, from, to)
  if to == stock then count_freed(freed, ids, units) end
  if to ~= sold then
    user.counts = user.counts or {}
    give_back(user.counts, user_key, order.lines)
  end
  lines = lines + #ids
  if not touched[user_key] then
    touched[user_key] = true
    touched[#touched + 1] = user_key
  end
  return ids, units, prices
end

for i = 1, n do
  if lines >= max_lines then break end
  local record, user_key, order_key = KEYS[3 * i + 9], KEYS[3 * i + 10], KEYS[3 * i + 11]
  local fingerprint, request_id, order_id, user_id, amount, payment_type, payment_id, receipt, method, transaction =
    unpack(ARGV, 10 * i - 2, 10 * i + 7)
  local by_gateway = method == 'GATEWAY'
  -- A repeat of a gateway's outcome is found by its receipt instead: its own request is RUNNING under this record.
  local reply = not by_gateway and records.replay(record, fingerprint) or nil
  local order = not reply and order_of(order_key)
  if reply then
    -- A replay.
  elseif not order.user or order.user ~= user_id then
    reply = 'ORDER_NOT_FOUND'
  elseif by_gateway then
    if order.receipt ~= receipt then
      reply = 'ALREADY_CLOSED'
    elseif order.status == 'PAID' then
      reply = 'PAID_BEFORE' .. SEPARATOR .. order.payment .. SEPARATOR .. receipt .. SEPARATOR .. order.paid_at
    elseif order.status ~= 'PENDING' or order.gateway ~= 'STARTED' then
      reply = 'ALREADY_CLOSED'
    end
  elseif order.status == 'PAID' then
    reply = 'ALREADY_PAID'
  elseif order.status ~= 'PENDING' then
    reply = 'ALREADY_CLOSED'
  elseif order.gateway == 'STARTED' then
    reply = 'IN_PROGRESS'
  elseif tonumber(amount) ~= order.final then
    reply = 'WRONG_AMOUNT'
  end

  if not reply then
    local user, final = user_of(user_key), order.final
    expired[#expired + 1] = order_id
    if not by_gateway and user.balance < final then
      reply = 'DECLINED' .. SEPARATOR .. epoch .. SEPARATOR .. whole(seq)
      release(order, user_key, held, order.suspect and withheld or stock, 'A', '', '')
      order.status = 'FAILED'
      ended[#ended + 1] = { 'status', 'FAILED', 'reason', 'PAYMENT_DECLINED', 'closed_at', now }
      events[#events + 1] = with_record(
        table.concat({ 'order_closed', whole(seq), now, request_id, order_id, user_id, 'PENDING', 'FAILED',
          'PAYMENT_DECLINED', order.lines, order.coupon, '', '', '', '0', order.suspect and '1' or '0', '0',
          user.won, user.won, user.entries, user.tail }, SEPARATOR),
        record, fingerprint, reply)
    else
      -- What the balance loses: nothing if a gateway took the money, or if there is nothing to pay.
      local debit = by_gateway and 0 or final
      local before, prev = user.won, user.tail
      local number = whole(seq)
      reply = 'PAID' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. payment_id .. SEPARATOR .. receipt
        .. SEPARATOR .. now
      local ids, units, prices = release(order, user_key, held, sold, 'U', order_id, now)
      if debit > 0 then
        user.balance = user.balance - debit
        user.won, user.entries, user.tail = whole(user.balance), whole_again(user.entries + 1), SAME_ENTRY
      end
      for line = 1, #ids do
        local id = ids[line]
        ranked_units[id] = (ranked_units[id] or 0) + units[line]
        ranked_won[id] = (ranked_won[id] or 0) + units[line] * prices[line]
      end
      order.status, order.receipt, order.payment, order.paid_at = 'PAID', receipt, payment_id, now
      local fields = { 'status', 'PAID', 'receipt', receipt,
        'payment', pack_payment(payment_id, payment_type, method, now, day) }
      if by_gateway then
        fields[#fields + 1], fields[#fields + 2], fields[#fields + 3], fields[#fields + 4] =
          'gateway', 'SETTLED', 'transaction', transaction
        order.gateway = 'SETTLED'
        confirmed[#confirmed + 1] = order_id
      end
      ended[#ended + 1] = fields
      events[#events + 1] = with_record(
        'order_paid' .. SEPARATOR .. number .. SEPARATOR .. now .. SEPARATOR .. request_id .. SEPARATOR .. order_id
          .. SEPARATOR .. user_id .. SEPARATOR .. payment_id .. SEPARATOR .. payment_type .. SEPARATOR .. whole_again(final)
          .. SEPARATOR .. receipt .. SEPARATOR .. method .. SEPARATOR .. transaction .. SEPARATOR .. order.lines
          .. SEPARATOR .. order.coupon .. SEPARATOR .. day .. SEPARATOR .. whole_again(debit)
          .. SEPARATOR .. before .. SEPARATOR .. user.won .. SEPARATOR .. user.entries .. SEPARATOR .. prev,
        record, fingerprint, reply)
    end
    ended_keys[#ended] = order_key
    records.file(record, fingerprint, reply)
    seq = seq + 1
  end
  replies[i] = reply
end
if #events == 0 then return replies end
---- checks above, writes below -------------------------------------------------------------------------------------
local id = emit(outbox, epoch, events)
redis.call('HSET', meta, 'seq', whole(seq - 1))
for i = 1, #ended do write_in_chunks('HSET', ended_keys[i], ended[i]) end
write_in_chunks('ZREM', expiry, expired)
write_in_chunks('ZREM', gateway, confirmed)
for i = 1, #touched do
  local user = users[touched[i]]
  local fields
  if user.tail == SAME_ENTRY then
    fields = { 'open', whole_again(user.open), 'balance', user.won, 'entries', user.entries, 'tail', id }
  else
    fields = { 'open', whole_again(user.open) }
  end
  for coupon_id, coupon in pairs(user.coupons) do
    fields[#fields + 1], fields[#fields + 2] = coupon_id, coupon
  end
  write_in_chunks('HSET', touched[i], fields)
  if user.counts then write_counts(touched[i], user.counts) end
end
for _, counters in ipairs({ stock, held, sold, withheld, freed }) do counters.write() end
rank(ranked_units, ranked_won, rank_units, rank_won, seconds_until(rank_until, now))
records.write(ttl)
return replies
