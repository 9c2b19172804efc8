-- Shared by the scripts that hold, settle and give back. Lines are kept as "product:quantity:price,...", a user's
-- coupon as "issue_no|issued_at|state|order|used_at" with state A(vailable), H(eld by the order) or U(sed).

-- The product ids, units and unit prices of packed lines; at most 100 of them, bounded when the order was placed.
local function unpack_lines(lines)
  local ids, units, prices = {}, {}, {}
  for id, quantity, price in string.gmatch(lines, '(%d+):(%d+):(%d+)') do
    ids[#ids + 1], units[#units + 1], prices[#prices + 1] = id, tonumber(quantity), tonumber(price)
  end
  return ids, units, prices
end

-- Why these units can't be held, as a reply; nothing if they can. In the order of the lines: first what does not exist, then
-- what there is too little of.
local function shortage(ids, units, price_of, on_sale)
  for i = 1, #ids do
    if not price_of(ids[i]) then return { 'PRODUCT_NOT_FOUND', ids[i] } end
  end
  for i = 1, #ids do
    local left = on_sale(ids[i])
    if left == 0 then return { 'SOLD_OUT', ids[i] } end
    if left < units[i] then return { 'INSUFFICIENT_STOCK', ids[i] } end
  end
end

-- The counters of products, as far as a call needs them and has changed them.
local function new_counters(key)
  local known, changed = {}, {}
  return {
    -- Reads those of `ids` that are not known yet.
    load = function(ids)
      local missing = {}
      for i = 1, #ids do
        if known[ids[i]] == nil then
          known[ids[i]] = false
          missing[#missing + 1] = ids[i]
        end
      end
      local values = read_in_pieces('HMGET', key, missing)
      for i = 1, #missing do known[missing[i]] = tonumber(values[i]) or false end
    end,
    -- The number, or false where there is none.
    get = function(id) return known[id] end,
    add = function(id, n)
      known[id] = (known[id] or 0) + n
      changed[id] = true
    end,
    -- Below the line only.
    write = function()
      local fields = {}
      for id in pairs(changed) do
        fields[#fields + 1], fields[#fields + 2] = id, whole(known[id])
      end
      write_in_pieces('HSET', key, fields)
    end,
  }
end

-- Takes units from one set of counters and adds them to another; both know these products.
local function move_units(ids, units, from, to)
  for i = 1, #ids do
    from.add(ids[i], -units[i])
    to.add(ids[i], units[i])
  end
end

-- A user's coupon in another state, with its issue number and time.
local function marked_coupon(coupon, state, order_id, used_at)
  local issue_no, issued_at = string.match(coupon, '^(%d+)|(%d+)|')
  return issue_no .. '|' .. issued_at .. '|' .. state .. '|' .. order_id .. '|' .. used_at
end

-- How long from now until `moment` (ms), in whole seconds.
local function seconds_until(moment, now)
  return whole(math.ceil((tonumber(moment) - tonumber(now)) / 1000))
end

-- Adds units and won, by product, to a day's two rankings, which live for `life` seconds from now. Below the line only.
local function rank(units, won, rank_units, rank_won, life)
  if next(units) == nil then return end
  for id, n in pairs(units) do
    redis.call('ZINCRBY', rank_units, n, id)
    redis.call('ZINCRBY', rank_won, won[id], id)
  end
  redis.call('EXPIRE', rank_units, life)
  redis.call('EXPIRE', rank_won, life)
end

-- Takes them off again, and what is then at nothing out. Below the line only.
local function unrank(ids, units, prices, rank_units, rank_won)
  for i = 1, #ids do
    redis.call('ZINCRBY', rank_units, -units[i], ids[i])
    redis.call('ZINCRBY', rank_won, -units[i] * prices[i], ids[i])
  end
  redis.call('ZREMRANGEBYSCORE', rank_units, '-inf', 0)
  redis.call('ZREMRANGEBYSCORE', rank_won, '-inf', 0)
end
