#!lua
-- Splits a sequence that the first partition has for all partitions: gives the first partition its own, which continues it. Processes of
-- earlier versions go on with the sequence for all; it jumps to numbers that no own sequence reaches, so that no id is given twice.
--
-- KEYS 1 meta  hash  state of the first partition
--      2 ids   hash  sequence name -> last number reserved
-- ARGV 1 name of the own sequence  2 name of the sequence for all  3 the number to which that one jumps
--      4 the last number of an own sequence that PostgreSQL may know: where the sequence for all has jumped before
-- Returns {'SPLIT', last number of the own sequence, '1' if it began now, else '0'} or PARTITION_CLOSED
--@include partition
local meta, ids = KEYS[1], KEYS[2]
local own, shared, jump = ARGV[1], ARGV[2], tonumber(ARGV[3])

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local last = redis.call('HGET', ids, own)
if last then return { 'SPLIT', last, '0' } end
local before = redis.call('HGET', ids, shared) or '0'
local has_jumped = tonumber(before) >= jump
last = has_jumped and ARGV[4] or before
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', ids, own, last)
if not has_jumped then redis.call('HSET', ids, shared, ARGV[3]) end
return { 'SPLIT', last, '1' }
