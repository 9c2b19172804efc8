-- Shares of what was paid for an order.

-- floor(paid × value / total), exact for whole numbers up to 2^53: long division, bit by bit of `value`. `paid` and `value` are
-- at most `total`. Of an order without value every share is 0.
local function share_of(paid, value, total)
  if total == 0 then return 0 end
  local share, rest, bit = 0, 0, 2 ^ 52
  while bit >= 1 do
    share = share + share
    -- `rest` stays below `total`; neither sum is formed where it could exceed 2^53.
    if rest >= total - rest then
      share, rest = share + 1, rest - (total - rest)
    else
      rest = rest + rest
    end
    if value >= bit then
      value = value - bit
      if rest >= total - paid then
        share, rest = share + 1, rest - (total - paid)
      else
        rest = rest + paid
      end
    end
    bit = bit / 2
  end
  return share
end
