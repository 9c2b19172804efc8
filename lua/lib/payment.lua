-- The payment of an order, one field beside its receipt: "id|type|method|paid at|day", with the time in ms and the day of the sale as
-- YYYYMMDD; the last three are empty until it is paid. (A field for each would take 8,000 instructions more to write. With the
-- receipt it could be longer than 64 bytes, and Redis would keep the order in three times the memory.)

-- The parts of a payment; nothing if the order has none.
local function payment_of(packed)
  return string.match(packed or '', '^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
end

local function pack_payment(id, payment_type, method, paid_at, day)
  return id .. '|' .. payment_type .. '|' .. method .. '|' .. paid_at .. '|' .. day
end
