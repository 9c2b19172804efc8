#!lua flags=allow-oom
-- Sets orders to expire from Redis: those that are final and that Postgres has in the same state. One that was decided about again since then stays, because Postgres does not have that decision yet; the next
-- call, after Postgres has it, evicts it. So Postgres has the last state of every order that Redis does not have. Runs when
-- memory is exhausted, too: eviction is what makes room, and the outbox can't be trimmed without it.
--
-- KEYS 1 to n   hash  an order
-- ARGV 1 to 2n, in pairs: the state in Postgres (PAID, of which parts are refunded 'PAID:' and their number; CANCELLED FAILED, or
--      CLOSED for either of these two), how much longer it stays (ms)
-- Returns {'EVICTED', number}
local evicted = {}
for i = 1, #KEYS do
  local h = redis.call('HMGET', KEYS[i], 'status', 'gateway', 'refunds', 'due')
  local is, was, gateway = h[1], ARGV[2 * i - 1], h[2]
  if is == 'PAID' and h[3] then is = 'PAID:' .. h[3] end
  local same = is == was or (was == 'CLOSED' and (is == 'CANCELLED' or is == 'FAILED'))
  -- The gateway is still asked about the payment, or a refunded part, of such an order.
  local open = gateway == 'STARTED' or gateway == 'WATCHED' or gateway == 'REFUND_DUE' or gateway == 'UNCONFIRMED' or h[4]
  if same and not open then evicted[#evicted + 1] = i end
end
---- checks above, writes below -------------------------------------------------------------------------------------
for j = 1, #evicted do
  local i = evicted[j]
  redis.call('PEXPIRE', KEYS[i], ARGV[2 * i])
end
return { 'EVICTED', #evicted }
