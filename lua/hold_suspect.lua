#!lua
-- Marks remote holds whose orders a lost decision may have paid: what such a hold releases is withheld. A repeat changes nothing.
-- There is no event, because a rebuild of this partition marks its holds by what Postgres has of the loss.
--
-- KEYS 1 meta       hash    partition state
--      2 to n hold  hash    state (HELD SETTLED RELEASED REFUNDED) lines user doubt
-- ARGV 1 number of holds
-- Returns {'SUSPECTED', number of HELD holds} | PARTITION_CLOSED
--@include partition
local meta, n = KEYS[1], tonumber(ARGV[1])

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local held = {}
for i = 1, n do
  local hold = KEYS[i + 1]
  if redis.call('HGET', hold, 'state') == 'HELD' then held[#held + 1] = hold end
end
---- checks above, writes below -------------------------------------------------------------------------------------
for i = 1, #held do redis.call('HSET', held[i], 'doubt', '1') end
return { 'SUSPECTED', #held }
