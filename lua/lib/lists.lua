-- Numbers as text, and lists passed to Redis in chunks: Lua passes no more than about 8,000 values in one call. Only this file
-- passes lists to `redis.call`.

-- The most values of one call. Even, so that pairs stay together.
local CHUNK = 1000

-- A whole number as text. Lua itself rounds to 14 digits; `%d` is exact up to 2^53. (It takes less than half the time of a
-- number that `redis.call` converts.)
local function whole(number)
  return string.format('%d', number)
end

-- The same of a number that a call writes again and again: units, prices, sums. Making a text takes ten times as long as finding it.
local texts = {}
local function whole_again(number)
  local text = texts[number]
  if not text then
    text = whole(number)
    texts[number] = text
  end
  return text
end

-- The replies of a command with one reply per value (HMGET, SMISMEMBER), in the order of the values.
local function read_in_chunks(command, key, values)
  if #values == 0 then return {} end
  if #values <= CHUNK then return redis.call(command, key, unpack(values)) end
  local replies = {}
  for first = 1, #values, CHUNK do
    local chunk = redis.call(command, key, unpack(values, first, math.min(first + CHUNK - 1, #values)))
    for i = 1, #chunk do replies[first + i - 1] = chunk[i] end
  end
  return replies
end

-- The number of these keys that exist; a key named twice counts twice.
local function count_existing(keys)
  local count = 0
  for first = 1, #keys, CHUNK do
    count = count + redis.call('EXISTS', unpack(keys, first, math.min(first + CHUNK - 1, #keys)))
  end
  return count
end

-- Calls a write command on a key with all values. Below the line only.
local function write_in_chunks(command, key, values)
  if #values == 0 then return end
  if #values <= CHUNK then
    redis.call(command, key, unpack(values))
    return
  end
  for first = 1, #values, CHUNK do
    redis.call(command, key, unpack(values, first, math.min(first + CHUNK - 1, #values)))
  end
end
