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

-- Moves units from one hash of counters to another (stock, held, sold). Below the line only.
local function move_units(ids, units, from, to)
  if #ids == 0 then return end
  local left, right = redis.call('HMGET', from, unpack(ids)), redis.call('HMGET', to, unpack(ids))
  local less, more = {}, {}
  for i = 1, #ids do
    less[2 * i - 1], less[2 * i] = ids[i], tonumber(left[i] or 0) - units[i]
    more[2 * i - 1], more[2 * i] = ids[i], tonumber(right[i] or 0) + units[i]
  end
  redis.call('HSET', from, unpack(less))
  redis.call('HSET', to, unpack(more))
end

-- Puts a user's coupon into another state, keeping its issue number and time. Below the line only.
local function mark_coupon(coupons, coupon_id, state, order_id, used_at)
  local coupon = coupon_id ~= '' and redis.call('HGET', coupons, coupon_id)
  if not coupon then return end
  local issue_no, issued_at = string.match(coupon, '^(%d+)|(%d+)|')
  redis.call('HSET', coupons, coupon_id,
    issue_no .. '|' .. issued_at .. '|' .. state .. '|' .. order_id .. '|' .. used_at)
end

-- Adds (or, with sign -1, takes off) units and won to a day's two rankings. Below the line only.
local function rank(ids, units, prices, sign, rank_units, rank_won)
  for i = 1, #ids do
    redis.call('ZINCRBY', rank_units, sign * units[i], ids[i])
    redis.call('ZINCRBY', rank_won, sign * units[i] * prices[i], ids[i])
  end
end
