#!lua
-- Reserves consecutive ids. Under an idempotency key a repeat gets the same ids again, which is what makes creating under
-- them safe to repeat. Ids that are never used leave a gap, and nothing else; so without a key there is no event.
--
-- KEYS 1 meta    hash    the books of the first partition
--      2 outbox  stream
--      3 record  list    the idempotency record
--      4 ids     hash    sequence name -> last id reserved
-- ARGV 1 '' (a test's clock, ms)  2 fingerprint or ''  3 record's life (ms)  4 request id  5 sequence name  6 how many
-- Returns {'RESERVED', epoch, seq, first id} under a key, else {'TAKEN', first id}
--      or {'REPLAYED', ...the former} | KEY_REUSED | CLOSED_BOOKS
-- Emits ids_reserved (under a key only)
--@include lists
--@include partition
local meta, outbox, record, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, fingerprint, ttl, request_id, sequence, count =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])

local epoch, seq = open_books(meta)
if not epoch then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local last = tonumber(redis.call('HGET', ids, sequence) or 0) + count
local reply = { 'RESERVED', epoch, seq, last - count + 1 }
---- checks above, writes below -------------------------------------------------------------------------------------
if fingerprint ~= '' then
  redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'ids_reserved', 'epoch', epoch, 'seq', seq, 'at', now,
    'rid', request_id, 'sequence', sequence, 'first', last - count + 1, 'count', count,
    record_of(record, fingerprint, reply))
  redis.call('HSET', meta, 'seq', seq)
end
redis.call('HSET', ids, sequence, last)
if fingerprint == '' then return { 'TAKEN', last - count + 1 } end
return remember(record, fingerprint, ttl, reply)
