-- Shared by all scripts: numbers as text, and lists handed to Redis in pieces of a fixed size, since Lua hands over no more than
-- some 8,000 values at once. Only the functions of this file hand lists to `redis.call`.

-- The most values that are handed over at once; even, so that pairs stay together.
local PIECE = 1000

-- A whole number as it is written everywhere: Lua itself would round it to 14 digits. (`%d` is exact up to 2^53 like any other
-- and takes less than half the time; a number that is left to `redis.call` is written the slow way.)
local function whole(number)
  return string.format('%d', number)
end

-- What a command with many answers (HMGET, SMISMEMBER) reads of a key, in the order of the values.
local function read_in_pieces(command, key, values)
  if #values == 0 then return {} end
  if #values <= PIECE then return redis.call(command, key, unpack(values)) end
  local answers = {}
  for first = 1, #values, PIECE do
    local piece = redis.call(command, key, unpack(values, first, math.min(first + PIECE - 1, #values)))
    for i = 1, #piece do answers[first + i - 1] = piece[i] end
  end
  return answers
end

-- How many of these keys exist, each counted as often as it is named.
local function count_existing(keys)
  local count = 0
  for first = 1, #keys, PIECE do
    count = count + redis.call('EXISTS', unpack(keys, first, math.min(first + PIECE - 1, #keys)))
  end
  return count
end

-- Calls a writing command on a key with all these values. Below the line only.
local function write_in_pieces(command, key, values)
  for first = 1, #values, PIECE do
    redis.call(command, key, unpack(values, first, math.min(first + PIECE - 1, #values)))
  end
end
