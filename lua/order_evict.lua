#!lua flags=allow-oom
-- Lets orders leave Redis after a while, and stock that was held for orders at home elsewhere: those that are over, and that
-- Postgres has as they are here. One of which something else was decided since stays: Postgres does not have that yet, and
-- there will be another call when it does. So what is not here any more is in Postgres as it last was. Also where memory is
-- out: this is what makes room, and without it the outbox could not be trimmed either.
--
-- KEYS 1 to n   hash  an order, or a far hold
-- ARGV 1 to 2n, in pairs: what Postgres has it as (an order PAID CANCELLED FAILED, or CLOSED for either of the latter two; a
--      hold SETTLED REFUNDED), how much longer it stays (ms)
-- Returns {'RETIRED', how many}
local leaving = {}
for i = 1, #KEYS do
  local h = redis.call('HMGET', KEYS[i], 'status', 'state', 'gateway')
  local is, was, gateway = h[1] or h[2], ARGV[2 * i - 1], h[3]
  local same = is == was or (was == 'CLOSED' and (is == 'CANCELLED' or is == 'FAILED'))
  -- A gateway that is still asked about a payment has not said its last word.
  local open = gateway == 'STARTED' or gateway == 'WATCHED' or gateway == 'REFUND_DUE' or gateway == 'UNCONFIRMED'
  if same and not open then leaving[#leaving + 1] = i end
end
---- checks above, writes below -------------------------------------------------------------------------------------
for j = 1, #leaving do
  local i = leaving[j]
  redis.call('PEXPIRE', KEYS[i], ARGV[2 * i])
end
return { 'RETIRED', #leaving }
