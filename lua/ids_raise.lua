#!lua
-- Raises a sequence: its next number is above this one. Begins a sequence that does not exist.
--
-- KEYS 1 meta  hash  partition state
--      2 ids   hash  sequence name -> last number reserved
-- ARGV 1 sequence name  2 the least last number
-- Returns RAISED | PARTITION_CLOSED
--@include partition
local meta, ids, sequence = KEYS[1], KEYS[2], ARGV[1]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local last = redis.call('HGET', ids, sequence)
if last and tonumber(last) >= tonumber(ARGV[2]) then return { 'RAISED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', ids, sequence, ARGV[2])
return { 'RAISED' }
