#!lua
-- Places orders: prices each one and holds its stock and its coupon, all or nothing. Decides a batch of requests in their order.
--
-- KEYS 1 meta     hash    partition state
--      2 outbox   stream
--      3 expiry   zset    order id by the end of its hold (ms)
--      4 price    hash    product id -> won, or won with the terms of sale
--      5 stock    hash    product id -> units on sale
--      6 held     hash    product id -> units held
--      then of each request
--        record   list    idempotency record
--        user     hash    name balance entries tail open, by coupon id the user's coupons, and what the user has of limits
--        order    hash    the new order
-- ARGV 1 now (ms) in tests, else ''  2 life of a record (ms)  3 maximum of open orders of a user
--      4 '1' where the balance must cover the order, '0' where a gateway may settle it  5 how long an order holds (ms)
--      then of each request: fingerprint or '', request id, order id, user id, coupon id or '', PERCENTAGE | FIXED,
--        percent or won, when the coupon expires (ms),
--        the coupon's conditions or '': least total and most discount (won), and '1' or '0' of each line, which says whether the
--        discount is of it, separated by '|'; an empty part is no condition,
--        n, then n pairs: product id, quantity: distinct products, of which this partition sells its own units, or those that
--        their owner partitions gave it
-- Returns of each request, packed, {'PLACED', epoch, seq, order id, final price, now}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or USER_NOT_FOUND | TOO_MANY_OPEN | {PRODUCT_NOT_FOUND, id} | NOT_ON_SALE | PURCHASE_LIMIT_EXCEEDED
--      or {SOLD_OUT, id} | {INSUFFICIENT_STOCK, id}
--      or INVALID_COUPON | OVERFLOW | INSUFFICIENT_BALANCE | ALREADY_EXISTS (the order)
--      of the whole batch PARTITION_CLOSED
-- Emits order_placed for each
--@include lists
--@include partition
--@include idempotency
--@include batch
--@include holds
local meta, outbox, expiry = KEYS[1], KEYS[2], KEYS[3]
local stock, held = new_counters(KEYS[5]), new_counters(KEYS[6])
local now, ttl, max_open, must_afford = current_time(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local now_ms = tonumber(now)
local expires_at = whole(now_ms + tonumber(ARGV[5]))
local n = (#KEYS - 6) / 3
local MAX_SAFE_INTEGER = 9007199254740991

-- Reads the prices of products, by id, and of those that have any the terms of sale at `now_ms`: whether it is off sale, the limit
-- per user, the user's field that counts the units, and the mark of its lines. Both are one value: "won", or
-- "won|opens|closes|limit|group" with times in ms; an empty part is no term.
local function load_prices(key, ids, now_ms)
  local prices, terms, missing = {}, nil, {}
  for i = 1, #ids do
    if prices[ids[i]] == nil then
      prices[ids[i]] = false
      missing[#missing + 1] = ids[i]
    end
  end
  local values = read_in_chunks('HMGET', key, missing)
  for i = 1, #missing do
    local id, value = missing[i], values[i]
    local won = tonumber(value)
    if value and not won then
      local price, opens, closes, limit, group = string.match(value, '^(%d+)|(%d*)|(%d*)|(%d*)|(.*)$')
      won, limit, terms = tonumber(price), tonumber(limit), terms or {}
      terms[id] = { limit = limit, field = limit and limit_field(id, group), mark = limit and ':' .. group or '',
        off = opens ~= '' and now_ms < tonumber(opens) or closes ~= '' and now_ms >= tonumber(closes) }
    end
    prices[id] = won or false
  end
  return prices, terms
end

-- A refusal if one of these products does not exist, else nothing.
local function unknown_product(ids, prices)
  for i = 1, #ids do
    if not prices[ids[i]] then return { 'PRODUCT_NOT_FOUND', ids[i] } end
  end
end

-- A refusal if these units can't be held, else nothing. Checks the lines in their order.
local function shortage(ids, units, on_sale)
  for i = 1, #ids do
    local left = on_sale(ids[i])
    if left == 0 then return { 'SOLD_OUT', ids[i] } end
    if left < units[i] then return { 'INSUFFICIENT_STOCK', ids[i] } end
  end
end

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end

-- The requests, and the products and orders that are read for all of them at once.
local requests, products, orders = {}, {}, {}
local at = 6
for i = 1, n do
  local fingerprint, request_id, order_id, user_id, coupon_id, discount_type, discount, coupon_ends, conditions, lines =
    unpack(ARGV, at, at + 9)
  local ids, units, order = {}, {}, KEYS[3 * i + 6]
  for line = 1, tonumber(lines) do
    local id = ARGV[at + 8 + 2 * line]
    ids[line], units[line] = id, tonumber(ARGV[at + 9 + 2 * line])
    products[#products + 1] = id
  end
  at = at + 10 + 2 * #ids
  requests[i] = { record = KEYS[3 * i + 4], user = KEYS[3 * i + 5], order = order, fingerprint = fingerprint,
    request_id = request_id, order_id = order_id, user_id = user_id, coupon_id = coupon_id,
    discount_type = discount_type, discount = tonumber(discount), coupon_ends = tonumber(coupon_ends),
    conditions = conditions, ids = ids, units = units }
  orders[i] = order
end
local prices, terms = load_prices(KEYS[4], products, now_ms)
stock.load(products)
held.load(products)
local none_exist = count_existing(orders) == 0

local records, users, replies, events = new_records(), {}, {}, {}
-- The pending writes: orders with their fields, the ends of their holds, keys of users.
local placed, placed_keys, ends, touched = {}, {}, {}, {}

-- Whether a product of these is off sale, and the user's field that counts their units against a limit; all fields if there are
-- several.
local function terms_of(ids)
  local off, field, fields
  for i = 1, #ids do
    local sale = terms[ids[i]]
    if sale then
      off = off or sale.off
      if not field then
        field = sale.field
      elseif sale.field and sale.field ~= field then
        fields = fields or { field }
        fields[#fields + 1] = sale.field
      end
    end
  end
  return off, field, fields
end

-- The fields of a user that orders need, with the changes of this batch: also the one that counts units, or all of them.
local function user_of(key, field, fields)
  local user = users[key]
  if not user then
    local u
    if fields then
      u = read_in_chunks('HMGET', key, { 'name', 'balance', 'open', unpack(fields) })
    elseif field then
      u = redis.call('HMGET', key, 'name', 'balance', 'open', field)
    else
      u = redis.call('HMGET', key, 'name', 'balance', 'open')
    end
    -- `changed`: the fields that the batch writes, but `open`.
    user = { name = u[1], balance = tonumber(u[2]), open = tonumber(u[3]), changed = {}, touched = false }
    users[key] = user
    if fields then
      for i = 1, #fields do user[fields[i]] = tonumber(u[3 + i]) or 0 end
    elseif field then
      user[field] = tonumber(u[4]) or 0
    end
  elseif fields or field and not user[field] then
    fields = fields or { field }
    local counts = read_in_chunks('HMGET', key, fields)
    for i = 1, #fields do user[fields[i]] = user[fields[i]] or tonumber(counts[i]) or 0 end
  end
  return user
end

-- What the user then has of the limits, of one or by field; nothing if it is too much.
local function counted(request, user, field, fields)
  local count, counts = user[field], fields and {}
  for line, id in ipairs(request.ids) do
    local sale = terms[id]
    if sale and sale.limit then
      if counts then count = counts[sale.field] or user[sale.field] end
      count = count + request.units[line]
      if count > sale.limit then return end
      if counts then counts[sale.field] = count end
    end
  end
  return counts or count
end

-- The total price of an order, and its lines, packed; nothing if the total is too large to be exact.
local function priced(request)
  -- Doubles are exact up to 2^53 and round monotonically above it, so a sum above the bound stays above it.
  local total, lines = 0, {}
  for line, id in ipairs(request.ids) do
    total = total + prices[id] * request.units[line]
    if total > MAX_SAFE_INTEGER then return end
    lines[line] = id .. ':' .. whole(request.units[line]) .. ':' .. whole(prices[id])
    if terms and terms[id] then lines[line] = lines[line] .. terms[id].mark end
  end
  return total, table.concat(lines, ',')
end

-- The discount on `won`.
local function discount_of(request, won)
  if request.discount_type ~= 'PERCENTAGE' then return math.min(request.discount, won) end
  -- floor(won * percent / 100) without leaving the exact integers
  local rest = won % 100
  return (won - rest) / 100 * request.discount + math.floor(rest * request.discount / 100)
end

-- The discount of an order; nothing if it does not meet the conditions of its coupon.
local function discounted(request, total)
  if request.coupon_id == '' then return 0 end
  if request.conditions == '' then return discount_of(request, total) end
  local least, most, qualifying = string.match(request.conditions, '^(%d*)|(%d*)|([01]*)$')
  if least ~= '' and total < tonumber(least) then return end
  local won = total
  if qualifying ~= '' then
    won = 0
    for line, id in ipairs(request.ids) do
      if string.sub(qualifying, line, line) == '1' then won = won + prices[id] * request.units[line] end
    end
  end
  local discount = discount_of(request, won)
  return most == '' and discount or math.min(discount, tonumber(most))
end

-- The reply to a request. Adds an order that is placed to the pending writes.
local function decide(request)
  if not none_exist and redis.call('EXISTS', request.order) == 1 then
    -- After a loss, an id that was used before.
    return 'ALREADY_EXISTS'
  end
  local off, field, fields
  if terms then off, field, fields = terms_of(request.ids) end
  local user = user_of(request.user, field, fields)
  if not user.name then return 'USER_NOT_FOUND' end
  if user.open >= max_open then return 'TOO_MANY_OPEN' end
  local unknown = unknown_product(request.ids, prices)
  if unknown then return table.concat(unknown, SEPARATOR) end
  if off then return 'NOT_ON_SALE' end
  local counts = field and counted(request, user, field, fields)
  if field and not counts then return 'PURCHASE_LIMIT_EXCEEDED' end
  local short = shortage(request.ids, request.units, stock.get)
  if short then return table.concat(short, SEPARATOR) end
  local coupon
  if request.coupon_id ~= '' then
    coupon = user.changed[request.coupon_id] or redis.call('HGET', request.user, request.coupon_id)
    if not coupon or not request.coupon_ends or string.match(coupon, '^%d+|%d+|(%a)') ~= 'A'
      or now_ms >= request.coupon_ends or string.find(request.conditions, '|0+$') then
      return 'INVALID_COUPON'
    end
  end
  local total, lines = priced(request)
  if not total then return 'OVERFLOW' end
  local discount = discounted(request, total)
  if not discount then return 'INVALID_COUPON' end
  local final = total - discount
  if must_afford and user.balance < final then return 'INSUFFICIENT_BALANCE' end

  local number, order_id, user_id, coupon_id = whole(seq), request.order_id, request.user_id, request.coupon_id
  total, discount, final = whole(total), whole(discount), whole(final)
  local reply = 'PLACED' .. SEPARATOR .. epoch .. SEPARATOR .. number .. SEPARATOR .. order_id .. SEPARATOR .. final
    .. SEPARATOR .. now
  records.file(request.record, request.fingerprint, reply)
  user.open = user.open + 1
  if not user.touched then
    user.touched = true
    touched[#touched + 1] = request.user
  end
  if coupon then user.changed[coupon_id] = coupon_in_state(coupon, 'H', order_id, '') end
  if fields then
    for name, count in pairs(counts) do user[name], user.changed[name] = count, whole(count) end
  elseif field then
    user[field], user.changed[field] = counts, whole(counts)
  end
  for line, id in ipairs(request.ids) do
    stock.add(id, -request.units[line])
    held.add(id, request.units[line])
  end
  placed[#placed + 1] = { 'user', user_id, 'status', 'PENDING', 'lines', lines, 'total', total,
    'discount', discount, 'final', final, 'coupon', coupon_id, 'placed_at', now, 'expires_at', expires_at }
  placed_keys[#placed] = request.order
  ends[#ends + 1], ends[#ends + 2] = expires_at, order_id
  events[#events + 1] = with_record(
    'order_placed' .. SEPARATOR .. number .. SEPARATOR .. now .. SEPARATOR .. request.request_id .. SEPARATOR .. order_id
      .. SEPARATOR .. user_id .. SEPARATOR .. lines .. SEPARATOR .. total .. SEPARATOR .. discount
      .. SEPARATOR .. final .. SEPARATOR .. coupon_id .. SEPARATOR .. expires_at,
    request.record, request.fingerprint, reply)
  seq = seq + 1
  return reply
end

for i = 1, n do
  local request = requests[i]
  replies[i] = records.replay(request.record, request.fingerprint) or decide(request)
end
if #events == 0 then return replies end
---- checks above, writes below -------------------------------------------------------------------------------------
emit(outbox, epoch, events)
redis.call('HSET', meta, 'seq', whole(seq - 1))
for i = 1, #placed do write_in_chunks('HSET', placed_keys[i], placed[i]) end
write_in_chunks('ZADD', expiry, ends)
for i = 1, #touched do
  -- Once per user, however many orders it has placed.
  local user = users[touched[i]]
  local fields = { 'open', whole(user.open) }
  for name, value in pairs(user.changed) do
    fields[#fields + 1], fields[#fields + 2] = name, value
  end
  write_in_chunks('HSET', touched[i], fields)
end
stock.write()
held.write()
records.write(ttl)
return replies
