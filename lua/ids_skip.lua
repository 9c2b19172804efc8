#!lua
-- Skips the ids of a sequence up to one that is brought in from elsewhere: the next new id is above it.
--
-- KEYS 1 meta    hash    partition state
--      2 outbox  stream
--      3 ids     hash    sequence name -> last id reserved
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 sequence name  4 the id
-- Returns {'RESERVED', epoch, seq} or UNCHANGED (the next id is above it already) | PARTITION_CLOSED
-- Emits ids_reserved
--@include partition
local meta, outbox, ids = KEYS[1], KEYS[2], KEYS[3]
local now, request_id, sequence, id = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
if tonumber(redis.call('HGET', ids, sequence) or 0) >= tonumber(id) then return { 'UNCHANGED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'ids_reserved', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'sequence', sequence, 'first', id, 'count', 1)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', ids, sequence, id)
return { 'RESERVED', epoch, seq }
