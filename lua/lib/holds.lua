-- Holding, settling and releasing stock and coupons. Lines are stored as "product:quantity:price,..."; one that counts against a
-- limit per user as "product:quantity:price:group", without a group if the limit is the product's own. A user's coupon is
-- "issue_no|issued_at|state|order|used_at" with state A(vailable), H(eld by the order) or U(sed).

-- The product ids, units and unit prices of packed lines. At most 100 lines: http bounds an order.
local function unpack_lines(lines)
  local id, quantity, price, rest = string.match(lines, '^(%d+):(%d+):(%d+)()')
  if not id then return {}, {}, {} end
  local ids, units, prices = { id }, { tonumber(quantity) }, { tonumber(price) }
  -- Most orders have one line.
  rest = string.find(lines, ',', rest, true)
  if rest then
    for more, its_quantity, its_price in string.gmatch(string.sub(lines, rest), '(%d+):(%d+):(%d+)') do
      ids[#ids + 1], units[#units + 1], prices[#prices + 1] = more, tonumber(its_quantity), tonumber(its_price)
    end
  end
  return ids, units, prices
end

-- The field of a user that counts units against a limit.
local function limit_field(id, group)
  if group == '' then return 'limit:' .. id end
  return 'group:' .. group
end

-- Counters by product (on sale, held, ...): those that a call has loaded, with its changes, which `changed` has by id.
local function new_counters(key)
  local known, changed = {}, {}
  return {
    changed = changed,
    -- Reads those of `ids` that are not loaded yet.
    load = function(ids)
      local missing = {}
      for i = 1, #ids do
        if known[ids[i]] == nil then
          known[ids[i]] = false
          missing[#missing + 1] = ids[i]
        end
      end
      local values = read_in_chunks('HMGET', key, missing)
      for i = 1, #missing do known[missing[i]] = tonumber(values[i]) or false end
    end,
    -- The number; false if there is none.
    get = function(id) return known[id] end,
    add = function(id, n)
      known[id] = (known[id] or 0) + n
      changed[id] = (changed[id] or 0) + n
    end,
    -- Below the line only.
    write = function()
      local fields = {}
      for id in pairs(changed) do
        fields[#fields + 1], fields[#fields + 2] = id, whole(known[id])
      end
      write_in_chunks('HSET', key, fields)
    end,
  }
end

-- Moves units from one set of counters to another; both have loaded these products.
local function move_units(ids, units, from, to)
  for i = 1, #ids do
    from.add(ids[i], -units[i])
    to.add(ids[i], units[i])
  end
end

-- Moves what a call has taken from one set of counters to another, and returns it by product; both have loaded these products.
local function move_taken(from, to)
  local taken = {}
  for id, change in pairs(from.changed) do
    taken[id] = -change
    to.add(id, -change)
  end
  return taken
end

-- Counts units that came back on sale: who finds nothing on sale twice, and the same count, knows that there was nothing meanwhile.
local function count_freed(freed, ids, units)
  freed.load(ids)
  for i = 1, #ids do freed.add(ids[i], units[i]) end
end

-- Subtracts the units of packed lines from what a user has of limits. `counts`: the fields that the call has read, with its
-- changes.
local function give_back(counts, user, lines)
  local units, missing = {}, {}
  for id, quantity, group in string.gmatch(lines, '(%d+):(%d+):%d+:([A-Z0-9_-]*)') do
    local field = limit_field(id, group)
    if not counts[field] and not units[field] then missing[#missing + 1] = field end
    units[field] = (units[field] or 0) + tonumber(quantity)
  end
  if #missing == 0 and next(units) == nil then return end
  local values = read_in_chunks('HMGET', user, missing)
  for i = 1, #missing do counts[missing[i]] = tonumber(values[i]) or 0 end
  for field, n in pairs(units) do counts[field] = math.max(counts[field] - n, 0) end
end

-- Writes what a user has of limits; a limit of which the user has nothing has no field. Below the line only.
local function write_counts(user, counts)
  local fields, ended = {}, {}
  for field, count in pairs(counts) do
    if count > 0 then
      fields[#fields + 1], fields[#fields + 2] = field, whole(count)
    else
      ended[#ended + 1] = field
    end
  end
  write_in_chunks('HSET', user, fields)
  write_in_chunks('HDEL', user, ended)
end

-- A user's coupon in a new state; its issue number and time stay.
local function coupon_in_state(coupon, state, order_id, used_at)
  local issue_no, issued_at = string.match(coupon, '^(%d+)|(%d+)|')
  return issue_no .. '|' .. issued_at .. '|' .. state .. '|' .. order_id .. '|' .. used_at
end

-- The time from now until `moment` (both ms), in whole seconds.
local function seconds_until(moment, now)
  return whole(math.ceil((tonumber(moment) - tonumber(now)) / 1000))
end

-- Adds units and won, by product, to a day's two rankings, which expire in `ttl` seconds. Below the line only.
local function rank(units, won, rank_units, rank_won, ttl)
  if next(units) == nil then return end
  for id, n in pairs(units) do
    redis.call('ZINCRBY', rank_units, n, id)
    redis.call('ZINCRBY', rank_won, won[id], id)
  end
  redis.call('EXPIRE', rank_units, ttl)
  redis.call('EXPIRE', rank_won, ttl)
end

-- Subtracts them from a day's two rankings, and removes products without sales. Below the line only.
local function unrank(ids, units, prices, rank_units, rank_won)
  for i = 1, #ids do
    redis.call('ZINCRBY', rank_units, -units[i], ids[i])
    redis.call('ZINCRBY', rank_won, -units[i] * prices[i], ids[i])
  end
  redis.call('ZREMRANGEBYSCORE', rank_units, '-inf', 0)
  redis.call('ZREMRANGEBYSCORE', rank_won, '-inf', 0)
end
