#!lua
-- Stops a partition from deciding, because decisions of it were lost. The first reason is kept; a rebuild ends the freeze.
--
-- KEYS 1 meta  hash  partition state
-- ARGV 1 the reason
--      2 the cause: LOSS (Redis has lost decisions) | GAP (the outbox does not continue where PostgreSQL is)
-- Returns FROZEN | PARTITION_CLOSED (its state is lost, or it is frozen already)
--@include partition
local meta, reason, cause = KEYS[1], ARGV[1], ARGV[2]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', meta, 'frozen', reason, 'cause', cause)
return { 'FROZEN' }
