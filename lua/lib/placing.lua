-- Judging orders of a batch: their prices, terms of sale, limits, coupons and sums. Scripts that place orders share it.

-- The products and orders of all requests; they are read at once. The prices and terms of sale of products, by id; no terms if none
-- has any. The users that the call has read, by key. Whether none of the orders exists.
local products, order_keys, prices, terms, users, none_exist = {}, {}, nil, nil, {}, nil
local MAX_SAFE_INTEGER = 9007199254740991

-- A request whose arguments begin at `at` and whose keys begin at `key`; `rest` is the index of the argument after its lines.
-- (A table that is made with all its fields is not made again, larger, when it gets one more.)
local function read_request(at, key)
  local fingerprint, request_id, order_id, user_id, coupon_id, discount_type, discount, coupon_ends, conditions, lines,
    id, quantity = unpack(ARGV, at, at + 11)
  local ids, units, order = { id }, { tonumber(quantity) }, KEYS[key + 2]
  products[#products + 1] = id
  for line = 2, tonumber(lines) do
    id = ARGV[at + 8 + 2 * line]
    ids[line], units[line] = id, tonumber(ARGV[at + 9 + 2 * line])
    products[#products + 1] = id
  end
  order_keys[#order_keys + 1] = order
  return { record = KEYS[key], user = KEYS[key + 1], order = order, fingerprint = fingerprint,
    request_id = request_id, order_id = order_id, user_id = user_id, coupon_id = coupon_id,
    discount_type = discount_type, discount = tonumber(discount), coupon_ends = tonumber(coupon_ends),
    conditions = conditions, ids = ids, units = units, rest = at + 10 + 2 * #ids }
end

-- Reads the prices of products, by id, and of those that have any the terms of sale at `now_ms`: whether it is off sale, the limit
-- per user, the user's field that counts the units, and the mark of its lines. Both are one value: "won", or
-- "won|opens|closes|limit|group" with times in ms; an empty part is no term. Reads whether the orders exist, too.
local function load_prices(key, now_ms)
  prices = {}
  local missing = {}
  for i = 1, #products do
    local id = products[i]
    if prices[id] == nil then
      prices[id] = false
      missing[#missing + 1] = id
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
  none_exist = count_existing(order_keys) == 0
end

-- A refusal if one of these products does not exist, else nothing.
local function unknown_product(ids)
  for i = 1, #ids do
    if not prices[ids[i]] then return table.concat({ 'PRODUCT_NOT_FOUND', ids[i] }, SEPARATOR) end
  end
end

-- A refusal if these units can't be held, else nothing. Checks the lines in their order.
local function shortage(ids, units, on_sale)
  for i = 1, #ids do
    local left = on_sale(ids[i])
    if left == 0 then return table.concat({ 'SOLD_OUT', ids[i] }, SEPARATOR) end
    if left < units[i] then return table.concat({ 'INSUFFICIENT_STOCK', ids[i] }, SEPARATOR) end
  end
end

-- The terms of sale of an order, nothing if it has none: those of its product; of several lines, whether a product is off sale, and the
-- user's field that counts units against a limit, or the fields.
local function terms_of(ids)
  if #ids == 1 then return terms[ids[1]] end
  local joined
  for i = 1, #ids do
    local sale = terms[ids[i]]
    if sale then
      joined = joined or {}
      joined.off = joined.off or sale.off
      if not joined.field then
        joined.field = sale.field
      elseif sale.field and sale.field ~= joined.field then
        joined.fields = joined.fields or { joined.field }
        joined.fields[#joined.fields + 1] = sale.field
      end
    end
  end
  return joined
end

-- What orders need of a user, with the changes of this batch, and what the user has of the limits of `sale`; nothing if there is
-- no such user.
local function user_of(key, sale)
  local user, field = users[key], sale and sale.field
  if not user then
    local u
    if field then
      u = redis.call('HMGET', key, 'name', 'balance', 'open', 'entries', 'tail', field)
    else
      u = redis.call('HMGET', key, 'name', 'balance', 'open', 'entries', 'tail')
    end
    if not u[1] then return end
    -- `won`: the balance, as text. `count`: what the user has of the limit whose field is `field`, the first that the call meets.
    -- `known`: by field, what the user has of others, and the coupons that the batch changes, as text.
    user = { won = u[2], open = tonumber(u[3]), entries = u[4], tail = u[5],
      field = field, count = field and tonumber(u[6]) or 0, known = {}, touched = false }
    users[key] = user
  end
  if field and (field ~= user.field or sale.fields) then
    local fields, missing = sale.fields or { field }, {}
    for i = 1, #fields do
      if fields[i] ~= user.field and not user.known[fields[i]] then missing[#missing + 1] = fields[i] end
    end
    local counts = read_in_chunks('HMGET', key, missing)
    for i = 1, #missing do user.known[missing[i]] = tonumber(counts[i]) or 0 end
  end
  return user
end

-- What the user then has of the limits of several lines, or of another limit than the first, by field; nothing if it is too much.
local function counted(request, user)
  local ids, counts = request.ids, {}
  for line = 1, #ids do
    local sale = terms[ids[line]]
    if sale and sale.limit then
      local field = sale.field
      local count = (counts[field] or field == user.field and user.count or user.known[field]) + request.units[line]
      if count > sale.limit then return end
      counts[field] = count
    end
  end
  return counts
end

-- The total price of an order, and its lines, packed; nothing if the total is too large to be exact.
local function priced(request)
  -- Doubles are exact up to 2^53 and round monotonically above it, so a sum above the bound stays above it.
  local ids, units, total, packed, lines = request.ids, request.units, 0, nil, nil
  for line = 1, #ids do
    local id = ids[line]
    local price, sale = prices[id], terms and terms[id]
    total = total + price * units[line]
    if total > MAX_SAFE_INTEGER then return end
    packed = id .. ':' .. whole_again(units[line]) .. ':' .. whole_again(price) .. (sale and sale.mark or '')
    if lines then lines[line] = packed else lines = { packed } end
  end
  return total, #ids == 1 and packed or table.concat(lines, ',')
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

-- Judges an order: a refusal; or nothing, its user, who has the units of its limits now, its coupon if it has one, its lines, packed,
-- the total, the discount, and the user's balance if it must cover them.
local function judge(request, max_open, must_afford, on_sale, now_ms)
  if not none_exist and redis.call('EXISTS', request.order) == 1 then
    -- After a loss, an id that was used before.
    return 'ALREADY_EXISTS'
  end
  local sale = terms and terms_of(request.ids)
  local user = user_of(request.user, sale)
  if not user then return 'USER_NOT_FOUND' end
  if user.open >= max_open then return 'TOO_MANY_OPEN' end
  local refusal = unknown_product(request.ids)
  if refusal then return refusal end
  -- What the user then has of the first limit, or of others by field.
  local count, counts
  if sale then
    if sale.off then return 'NOT_ON_SALE' end
    if sale.limit and sale.field == user.field then
      count = user.count + request.units[1]
      if count > sale.limit then return 'PURCHASE_LIMIT_EXCEEDED' end
    elseif sale.field then
      counts = counted(request, user)
      if not counts then return 'PURCHASE_LIMIT_EXCEEDED' end
    end
  end
  refusal = shortage(request.ids, request.units, on_sale)
  if refusal then return refusal end
  local coupon
  if request.coupon_id ~= '' then
    coupon = user.known[request.coupon_id] or redis.call('HGET', request.user, request.coupon_id)
    if not coupon or not request.coupon_ends or string.match(coupon, '^%d+|%d+|(%a)') ~= 'A'
      or now_ms >= request.coupon_ends or string.find(request.conditions, '|0+$') then
      return 'INVALID_COUPON'
    end
  end
  local total, lines = priced(request)
  if not total then return 'OVERFLOW' end
  local discount = discounted(request, total)
  if not discount then return 'INVALID_COUPON' end
  local won = must_afford and tonumber(user.won)
  if won and won < total - discount then return 'INSUFFICIENT_BALANCE' end
  if count then
    user.count = count
  elseif counts then
    for field, units in pairs(counts) do
      if field == user.field then user.count = units else user.known[field] = units end
    end
  end
  return nil, user, coupon, lines, total, discount, won
end

-- An order's total, discount and final price as text.
local function sums_of(total, discount)
  local sum = whole_again(total)
  if discount == 0 then return sum, '0', sum end
  return sum, whole_again(discount), whole_again(total - discount)
end

-- Adds to a list of fields and values what a user has of limits, and the changed coupons. Nothing of a limit is no field.
local function append_known(user, fields)
  if user.count > 0 then fields[#fields + 1], fields[#fields + 2] = user.field, whole_again(user.count) end
  for name, value in pairs(user.known) do
    if value ~= 0 then
      fields[#fields + 1], fields[#fields + 2] = name, type(value) == 'number' and whole_again(value) or value
    end
  end
end
