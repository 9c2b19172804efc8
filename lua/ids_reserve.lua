#!lua
-- Reserves consecutive ids. A repeat under the same idempotency key gets the same ids, so it can create under them again. Ids
-- that are never used leave a gap and do no other harm; without a key there is therefore no event.
--
-- KEYS 1 meta    hash    partition state
--      2 outbox  stream
--      3 record  list    idempotency record
--      4 ids     hash    sequence name -> last id reserved
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 sequence name  6 number of ids
--      7 '1' to start a sequence that does not exist, '0' to refuse it
-- Returns {'RESERVED', epoch, seq, first id, '1': the creation under these ids has a record, too} under a key
--      or {'ALLOCATED', first id}
--      or {'REPLAYED', ...the former} | KEY_REUSED | NO_SEQUENCE | PARTITION_CLOSED
-- Emits ids_reserved (under a key only)
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, fingerprint, ttl, request_id, sequence, count =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local last = redis.call('HGET', ids, sequence)
if not last and ARGV[7] == '0' then return { 'NO_SEQUENCE' } end
last = tonumber(last or 0) + count
local reply = { 'RESERVED', epoch, seq, last - count + 1, '1' }
---- checks above, writes below -------------------------------------------------------------------------------------
if fingerprint ~= '' then
  redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'ids_reserved', 'epoch', epoch, 'seq', seq, 'at', now,
    'rid', request_id, 'sequence', sequence, 'first', last - count + 1, 'count', count,
    record_of(record, fingerprint, reply))
  redis.call('HSET', meta, 'seq', seq)
end
redis.call('HSET', ids, sequence, last)
if fingerprint == '' then return { 'ALLOCATED', last - count + 1 } end
return remember(record, fingerprint, ttl, reply)
