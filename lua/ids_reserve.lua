#!lua
-- Reserves consecutive ids. Under an idempotency key a repeat gets the same ids again, which is what makes creating under
-- them safe to repeat. Ids that are never used leave a gap, and nothing else; so there is no event.
--
-- KEYS 1 meta    hash    the books of the first partition
--      2 ids     hash    sequence name -> last id reserved
--      3 record  list    the idempotency record
-- ARGV 1 fingerprint or ''  2 record's life (ms)  3 sequence name  4 how many
-- Returns {'RESERVED', first id} or {'REPLAYED', 'RESERVED', first id} | KEY_REUSED | CLOSED_BOOKS
--@include books
local meta, ids, record = KEYS[1], KEYS[2], KEYS[3]
local fingerprint, ttl, sequence, count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
local prior = replay(record, fingerprint)
if prior then return prior end
---- checks above, writes below -------------------------------------------------------------------------------------
local last = redis.call('HINCRBY', ids, sequence, count)
return remember(record, fingerprint, ttl, { 'RESERVED', last - count + 1 })
